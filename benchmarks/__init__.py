"""What Stillhouse costs, measured: its training step beside a plain statement of 2019's, and its
way from text to tokens beside the `tokenizers` library's."""
