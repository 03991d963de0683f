"""Induction heads laid into a fresh model: it says again what it saw, before it learnt anything."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from stages.errors import SettingError
from stages.inputs import EMBEDDED
from stages.models import induction
from stages.models.fresh import draw_model


def directory_of(tmp_path, **values):
    """Write the embedded model's architecture with other values."""
    for file in (*EMBEDDED.glob("tokenizer*.json"), *EMBEDDED.glob("*.jinja")):
        shutil.copyfile(file, tmp_path / file.name)
    config = json.loads((EMBEDDED / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | values))
    return tmp_path


def said_again(module, length=40, rows=8):
    """Return the mean loss of random tokens, and of the same tokens when they come again."""
    ids = np.random.default_rng(1).integers(300, 6000, (rows, length))
    ids = mx.array(np.concatenate([ids, ids], axis=1))
    logits = module(ids)[:, :-1]
    losses = mx.logsumexp(logits, axis=-1) - mx.take_along_axis(
        logits, ids[:, 1:, None], axis=-1
    ).squeeze(-1)  # fmt: skip
    return losses[:, : length - 1].mean().item(), losses[:, length:].mean().item()


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_says_again_what_it_saw(seed):
    """What comes again is likelier by more than 1.5 nats than what is new; for normal weights,
    which know nothing, it is not."""
    new, again = said_again(draw_model(EMBEDDED, seed, "induction")[0])
    assert again < new - 1.5
    new, again = said_again(draw_model(EMBEDDED, seed)[0])
    assert again > new - 0.1


@pytest.mark.parametrize("heads", [(4, 4, 64), (4, 1, 64), (8, 2, 32), (2, 2, 128)])
def test_heads_may_share_keys_or_not(tmp_path, heads):
    """With any number of heads and of keys that they share, the circuit works."""
    attention, keys, width = heads
    directory = directory_of(
        tmp_path, num_attention_heads=attention, num_key_value_heads=keys, head_dim=width
    )
    new, again = said_again(draw_model(directory, 0, "induction")[0])
    assert again < new - 0.5


def test_two_heads_look_one_and_two_tokens_back():
    """In layer 0 most of the attention of the first two heads lies on the last token and on the
    one before it, by softmax of the products of queries and keys."""
    module, _ = draw_model(EMBEDDED, 0, "induction")
    ids = mx.array(np.random.default_rng(2).integers(300, 6000, (1, 50)))
    layer = module.model.layers[0]
    normed, attention = layer.input_layernorm(module.model.embed_tokens(ids)), layer.self_attn

    def turned(projection, heads):
        return attention.rope(projection(normed).reshape(1, 50, heads, -1).transpose(0, 2, 1, 3))

    queries = np.array(turned(attention.q_proj, attention.n_heads))[0, :2]
    keys = np.array(turned(attention.k_proj, attention.n_kv_heads))[0, 0]
    for back, scores in zip((1, 2), queries @ keys.T * attention.scale, strict=True):
        places = np.arange(2, 50)
        scores = np.where(np.tri(50, dtype=bool), scores, -np.inf)
        shares = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        assert shares[places, places - back].mean() > 0.8


def test_a_seed_decides_every_number():
    """Drawn again the weights are the same; another seed shares no matrix with them."""
    one, again, other = (
        dict(tree_flatten(draw_model(EMBEDDED, seed, "induction")[0].parameters()))
        for seed in (3, 3, 4)
    )
    for name, value in one.items():
        np.testing.assert_array_equal(np.array(value), np.array(again[name]))
        if value.ndim == 2:
            assert not np.isclose(np.array(value), np.array(other[name])).mean() > 0.2, name


@pytest.mark.parametrize(
    "values",
    [{"model_type": "qwen3"}, {"tie_word_embeddings": False}, {"num_hidden_layers": 1},
     {"num_attention_heads": 1, "num_key_value_heads": 1}, {"head_dim": 256}, {"head_dim": 16}],
)  # fmt: skip
def test_what_it_does_not_fit_is_refused(tmp_path, values):
    """The message names the key and the mend, before anything is drawn."""
    directory = directory_of(tmp_path, **values)
    assert not induction.fits(json.loads((directory / "config.json").read_text()))
    with pytest.raises(SettingError, match=r"found 'induction'.* is not a Llama") as caught:
        draw_model(directory, 0, "induction")
    assert "model.init=normal" in str(caught.value)
