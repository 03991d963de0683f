"""Answers are the same alone and in company, and end for the right reason."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map
from mlx_lm.generate import generate_step

from stages.errors import InputError, SettingError, StopRequested
from stages.generation.decode import Completion, complete
from stages.generation.engine import Engine, Job
from stages.generation.sampling import Sampling
from stages.lora.bank import Bank, attach
from stages.lora.full import FullWeights, all_weights
from stages.lora.layers import AdapterShape
from stages.lora.targets import find_targets

START, END = 256, 257
PROMPTS = [[*text.encode()] for text in ("a", "hello there", "x" * 60, "one two", "q", "ü?" * 9)]


def chain(text: str) -> dict[int, int]:
    """Follow each byte of `text` by the next one; the last is followed by END."""
    letters = [*text.encode()]
    assert len(set(letters)) == len(letters)
    return dict(pairwise(letters))


def run(engine: Engine, jobs: Sequence[Job], diary: Callable) -> list[Completion]:
    return sorted(complete(engine, jobs, diary()), key=lambda completion: completion.index)


def answer(model, tokenizer, diary, prompt: str, **sampling) -> tuple[str, str, int]:
    engine = Engine(model, tokenizer, [END], batch_size=4)
    [done] = run(engine, [Job(prompt=[*prompt.encode()], sampling=Sampling(**sampling))], diary)
    return done.text, done.finish_reason, done.completion_tokens


def test_greedy_answers_are_mlx_lms_own(random_model, tokenizer, diary) -> None:
    """Each row of a batch gives what mlx-lm's single-row generation gives, token by token."""
    sampling = Sampling(max_tokens=20)
    engine = Engine(random_model, tokenizer, [END], batch_size=3)
    made = run(engine, [Job(prompt=prompt, sampling=sampling) for prompt in PROMPTS], diary)
    for prompt, completion in zip(PROMPTS, made, strict=True):
        steps = generate_step(mx.array(prompt), random_model, max_tokens=20)
        ids = [int(token) for token, _ in steps]
        ended = END in ids
        ids = ids[: ids.index(END)] if ended else ids
        assert completion.text == tokenizer.decode(ids, skip_special_tokens=True)
        assert completion.finish_reason == ("stop" if ended else "length")
        assert completion.completion_tokens == len(ids) + ended
    assert len({completion.text for completion in made}) == len(PROMPTS)


def test_seeded_answers_do_not_depend_on_their_neighbours(random_model, tokenizer, diary) -> None:
    """A seeded draw is the same alone, in a full batch, and behind a queue."""
    jobs = [
        Job(prompt=prompt, sampling=Sampling(temperature=1.0, top_p=0.9, seed=9, max_tokens=12))
        for prompt in PROMPTS
    ]
    alone = [
        run(Engine(random_model, tokenizer, [END], batch_size=1), [job], diary)[0].text
        for job in jobs
    ]
    noise = Job(prompt=[65], sampling=Sampling(temperature=2.0, max_tokens=5))
    for batch_size in (2, 8):
        engine = Engine(random_model, tokenizer, [END], batch_size=batch_size)
        made = run(engine, [*jobs, noise], diary)
        assert [completion.text for completion in made[:-1]] == alone


def test_answer_ends_at_a_stop_token(chain_model, tokenizer, diary) -> None:
    """A stop token ends the answer, counts as generated, and is no part of the text."""
    assert answer(chain_model(chain("abcd")), tokenizer, diary, "a") == ("bcd", "stop", 4)


def test_answer_ends_at_max_tokens(chain_model, tokenizer, diary) -> None:
    """max_tokens ends the answer as `length`; a stop token that comes just then still counts."""
    model = chain_model(chain("abcd"))
    assert answer(model, tokenizer, diary, "a", max_tokens=3) == ("bcd", "length", 3)
    assert answer(model, tokenizer, diary, "a", max_tokens=4) == ("bcd", "stop", 4)


def test_answer_ends_with_the_context(chain_model, tokenizer, diary) -> None:
    """An answer ends where the model's context does; a prompt that fills it is refused."""
    model = chain_model({97: 97}, max_position_embeddings=8)
    assert answer(model, tokenizer, diary, "aaaaa") == ("aaa", "length", 3)
    with pytest.raises(InputError) as caught:
        answer(model, tokenizer, diary, "a" * 8)
    assert (caught.value.where, caught.value.found) == ("prompt", "8 tokens, the model takes 8")


def test_stop_text_ends_the_answer_at_once(chain_model, tokenizer, diary) -> None:
    """Generation ends with the token that completes a stop text, not later."""
    model = chain_model(chain("abcdefgh"))
    assert answer(model, tokenizer, diary, "a", stop=("zz", "de")) == ("bc", "stop", 4)


def test_text_held_back_is_not_lost(chain_model, tokenizer, diary) -> None:
    """The start of a stop text that never comes belongs to the answer, however that ends."""
    model = chain_model(chain("abcd"))
    assert answer(model, tokenizer, diary, "a", stop=("cdX",)) == ("bcd", "stop", 4)
    assert answer(model, tokenizer, diary, "a", stop=("cdX",), max_tokens=2) == ("bc", "length", 2)


def test_cancelled_request_leaves_the_others_alone(random_model, tokenizer, diary) -> None:
    """A request dropped while waiting, reading or answering changes no other answer."""
    sampling = Sampling(max_tokens=16)
    engine = Engine(random_model, tokenizer, [END], batch_size=3)
    jobs = [Job(prompt=prompt, sampling=sampling) for prompt in PROMPTS]
    expected = {c.index: c.text for c in run(engine, jobs, diary)}
    for drop_after in (0, 1, 2, 5):
        uids = [engine.insert(job) for job in jobs]
        texts = dict.fromkeys(uids, "")
        for step in range(200):
            if step == drop_after:
                engine.cancel(uids[2])
                engine.cancel(uids[5])
            for event in engine.step():
                assert step < drop_after or event.uid not in (uids[2], uids[5])
                texts[event.uid] += event.text
        assert len(engine) == 0
        for index in (0, 1, 3, 4):
            assert texts[uids[index]] == expected[index]


def adapter(model, seed: int) -> Bank:
    bank = attach(model, find_targets(model, ("*",), None), [AdapterShape(2, 1.0)])
    random = np.random.default_rng(seed)
    bank.update({
        path: {name: mx.array(random.normal(size=value.shape, scale=0.5)).astype(mx.float32)
               for name, value in weights.items()}
        for path, weights in bank.parameters().items()
    })  # fmt: skip
    return bank


def whole(model) -> FullWeights:
    tuning = all_weights(model)
    tuning.update(tree_map(lambda weight: weight[::-1], tuning.parameters()))
    return tuning


def test_adapters_answer_side_by_side(random_model, tokenizer, diary) -> None:
    """Base, two adapters and a model tuned whole in one engine give what each gives alone, and
    leave the base as it was."""
    sampling = Sampling(max_tokens=12)
    jobs = [Job(prompt=prompt, sampling=sampling) for prompt in PROMPTS]
    expected = {None: run(Engine(random_model, tokenizer, [END], batch_size=4), jobs, diary)}
    banks = {}
    for seed, name in enumerate(("one", "two", "whole")):
        banks[name] = whole(random_model) if name == "whole" else adapter(random_model, seed)
        expected[name] = run(Engine(random_model, tokenizer, [END], batch_size=4), jobs, diary)
        banks[name].detach()
    texts = {name: tuple(c.text for c in made) for name, made in expected.items()}
    assert len(set(texts.values())) == 4
    engine = Engine(random_model, tokenizer, [END], adapters=banks, batch_size=4)
    names = [None, *banks]
    mixed = [
        Job(prompt=job.prompt, sampling=sampling, adapter=name) for job in jobs for name in names
    ]
    made = run(engine, mixed, diary)
    for place, name in enumerate(names):
        assert tuple(c.text for c in made[place::4]) == texts[name]
    after = run(Engine(random_model, tokenizer, [END], batch_size=4), jobs, diary)
    assert after == expected[None]


def test_what_cannot_be_answered_is_refused_before_the_step(random_model, tokenizer, diary) -> None:
    """An empty prompt and an unknown adapter are refused, and the engine goes on."""
    engine = Engine(random_model, tokenizer, [END], adapters={}, batch_size=4)
    with pytest.raises(InputError):
        engine.insert(Job(prompt=[], sampling=Sampling()))
    with pytest.raises(SettingError):
        engine.insert(Job(prompt=[65], sampling=Sampling(), adapter="gone"))
    assert len(engine) == 0
    job = Job(prompt=[65], sampling=Sampling(max_tokens=3, temperature=1.0, top_k=10**6))
    [done] = run(engine, [job], diary)
    assert done.completion_tokens in (1, 2, 3)


def test_reset_forgets_every_request(random_model, tokenizer, diary) -> None:
    """After a reset nothing is left, and the next answer is right."""
    engine = Engine(random_model, tokenizer, [END], batch_size=2)
    job = Job(prompt=PROMPTS[1], sampling=Sampling(max_tokens=8))
    [expected] = run(engine, [job], diary)
    for prompt in PROMPTS:
        engine.insert(Job(prompt=prompt, sampling=Sampling()))
    engine.step()
    engine.reset()
    assert len(engine) == 0
    assert engine.step() == []
    assert run(engine, [job], diary) == [expected]


def test_stop_request_ends_a_batch(random_model, tokenizer, diary) -> None:
    """A batch ends between two steps where the run is asked to stop, and leaves nothing."""
    engine = Engine(random_model, tokenizer, [], batch_size=2)
    jobs = [Job(prompt=prompt, sampling=Sampling(max_tokens=50)) for prompt in PROMPTS]
    with pytest.raises(StopRequested):
        list(complete(engine, jobs, diary(stop_after=5)))
    assert len(engine) == 0
