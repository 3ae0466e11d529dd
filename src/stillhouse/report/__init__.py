"""The report stage: evaluation.json + metrics.jsonl -> report.html and the model cards."""
