"""A model and a task: fine-tuned alone, or under a teacher that was trained on it."""
