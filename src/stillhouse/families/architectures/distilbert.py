"""DistilBERT (Sanh et al. 2019): BERT without token types and pooler; itself a teacher here too."""

from stillhouse.families.base import Family

FAMILY = Family(
    model_type="distilbert",
    language_modeling="masked",
    model_class="DistilBertForMaskedLM",
    body="distilbert",
    layers="distilbert.transformer.layer",
    attention_projections=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
    position_wise=("attention.out_lin", "ffn"),
    embeddings={
        "word_embeddings": "distilbert.embeddings.word_embeddings.weight",
        "position_embeddings": "distilbert.embeddings.position_embeddings.weight",
    },
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
