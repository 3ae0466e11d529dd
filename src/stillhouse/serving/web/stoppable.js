// Work with a button that stops it while it runs; starting it again stops what runs.

export class Stoppable {
  constructor(button, onError) {
    this.button = button;
    this.onError = onError;
    this.controller = null; // of the last run
    button.addEventListener("click", () => this.stop());
  }

  stop() {
    this.controller?.abort();
    this.button.hidden = true;
  }

  // Run `work(signal)`, which ends early where the signal is aborted; an error is shown with `retry`.
  // Whether no other run was started meanwhile.
  async run(work, retry) {
    this.stop();
    const controller = new AbortController();
    this.controller = controller;
    this.button.hidden = false;
    try {
      await work(controller.signal);
    } catch (error) {
      if (!controller.signal.aborted) this.onError(error, retry);
    }
    if (this.controller !== controller) return false;
    this.button.hidden = true;
    return true;
  }
}
