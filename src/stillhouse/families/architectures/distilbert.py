"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler; itself a teacher here too."""

from functools import partial

from stillhouse.families.base import Family

FAMILY = partial(
    Family,
    head_transform=lambda model, hidden: model.vocab_layer_norm(
        model.activation(model.vocab_transform(hidden))
    ),
    config_from_scratch=lambda size, special: {
        "hidden_dim": size.intermediate_size or 4 * size.hidden_size,
        "dropout": size.dropout,
        "attention_dropout": size.dropout,
        "pad_token_id": special["pad"],
    },
)
