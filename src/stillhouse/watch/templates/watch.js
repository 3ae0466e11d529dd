// Replaces the page's content by the news, every two seconds until the run is over.
const main = document.querySelector("main");

async function refresh() {
  try {
    const answer = await fetch("/state");
    const state = await answer.json();
    main.innerHTML = state.html;
    document.body.classList.remove("lost");
  } catch {
    document.body.classList.add("lost");
  }
  setTimeout(refresh, 2000);
}

setTimeout(refresh, 2000);
