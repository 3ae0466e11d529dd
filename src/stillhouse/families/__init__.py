"""The architectures Stillhouse knows, and reading and writing their model folders."""

from stillhouse.families.attention_tap import AttentionTap
from stillhouse.families.base import Family, Head, StudentKind
from stillhouse.families.folder import (
    count_parameters,
    empty_model,
    load_model,
    resolve_folder,
    save_model,
)
from stillhouse.families.folder_check import (
    check_folder,
    load_config,
    load_model_tokenizer,
    result_files,
)
from stillhouse.families.layer_map import evenly_spread, layers_from
from stillhouse.families.registry import check_sequence_length, family_named, family_of
from stillhouse.families.special_ids import (
    end_token_ids,
    one_or_several,
    padding_id,
    take_generation_config,
    warn_of_unheeded_settings,
    without_generation_defaults,
)
from stillhouse.families.task_models import (
    TaskHead,
    head_of,
    load_task_model,
    random_task_model,
    reads_token_types,
    reorder_outputs,
    shallower_config,
    shallower_task_model,
)

__all__ = [
    "AttentionTap",
    "Family",
    "Head",
    "StudentKind",
    "TaskHead",
    "check_folder",
    "check_sequence_length",
    "count_parameters",
    "empty_model",
    "end_token_ids",
    "evenly_spread",
    "family_named",
    "family_of",
    "head_of",
    "layers_from",
    "load_config",
    "load_model",
    "load_model_tokenizer",
    "load_task_model",
    "one_or_several",
    "padding_id",
    "random_task_model",
    "reads_token_types",
    "reorder_outputs",
    "resolve_folder",
    "result_files",
    "save_model",
    "shallower_config",
    "shallower_task_model",
    "take_generation_config",
    "warn_of_unheeded_settings",
    "without_generation_defaults",
]
