"""The smallest configuration of each family."""

from transformers import (
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    PretrainedConfig,
    RobertaConfig,
)

VOCABULARY = 60
POSITIONS = 24


def make_config(
    family: str, num_layers: int = 2, *, vocabulary: int = VOCABULARY, positions: int = POSITIONS
) -> PretrainedConfig:
    """A family's smallest configuration, without dropout."""
    if family == "gpt2":
        return GPT2Config(
            vocab_size=vocabulary,
            n_positions=positions,
            n_embd=16,
            n_layer=num_layers,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    if family == "distilbert":
        return DistilBertConfig(
            vocab_size=vocabulary,
            max_position_embeddings=positions,
            n_layers=num_layers,
            n_heads=2,
            dim=16,
            hidden_dim=32,
            dropout=0.0,
            attention_dropout=0.0,
            pad_token_id=0,
        )
    return (BertConfig if family == "bert" else RobertaConfig)(
        vocab_size=vocabulary,
        max_position_embeddings=positions if family == "bert" else positions + 2,
        type_vocab_size=2,
        hidden_size=16,
        num_hidden_layers=num_layers,
        num_attention_heads=2,
        intermediate_size=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        pad_token_id=0 if family == "bert" else 1,
        bos_token_id=0,
        eos_token_id=2,
    )
