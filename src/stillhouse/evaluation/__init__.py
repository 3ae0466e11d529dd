"""The evaluation stage: teacher, student and control measured side by side -> evaluation.json."""
