"""The distillation stage: teacher + initial student -> student, and its control."""
