"""Completion tokens are those of the completions, whatever the tokenizer, the template and the script."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from finetune_reference import CHATML, completion, conversation, reference_tokens, tiny_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hpsearch.basemodel import describe, token_counter
from hpsearch.dataset import ChatExample, Message, TextExample, lint
from hpsearch.dataset.formats import Fault, parse_examples
from hpsearch.errors import InvalidDataset
from hpsearch.finetune.batches import Layout, MicroBatch, Share, kept_micro_batches, micro_batches
from hpsearch.finetune.tokenised import TokenisedExample, TokenisedSplit
from hpsearch.finetune.tokens import tokenise, tokenizer_fingerprint
from tests.conftest import STUDIES

LLAMA2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token }}[INST] {{ m.content | trim }} [/INST]"
    "{% elif m.role == 'assistant' %} {{ m.content | trim }} {{ eos_token }}"
    "{% else %}{{ raise_exception('Only user and assistant roles!') }}{% endif %}{% endfor %}"
)
# Like Qwen3: reasoning is dropped from all but the last message, which always has a place for it.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}"
    "{% set answer = m.content.split('</think>')[-1].lstrip('\n') %}"
    "{% set thought = m.content.split('</think>')[0].replace('<think>', '').strip() "
    "if '</think>' in m.content else '' %}"
    "{% if loop.last %}<think>\n{{ thought }}\n</think>\n\n{% endif %}{{ answer }}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
)
FIRST_ONLY = "{% for m in messages[:2] %}{{ m.role }}: {{ m.content }}\n{% endfor %}"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40).filter(lambda text: "<" not in text)
filled = texts.filter(lambda text: bool(text.strip()))


def with_template(template: str | None, kind: str = "bytes") -> PreTrainedTokenizerFast:
    backend = tiny_tokenizer(kind).backend_tokenizer
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def chat(*turns: tuple[str, str] | tuple[str, str, int]) -> ChatExample:
    messages = [Message(role, text, *(weight or [int(role == "assistant")])) for role, text, *weight in turns]
    return ChatExample(tuple(messages), 1)


def tokenised(example, tokenizer, max_length=10_000, chat_template="auto") -> TokenisedExample:
    return tokenise([example], tokenizer, max_length, chat_template).examples[0]


def said(example: TokenisedExample, tokenizer) -> str:
    """The text of the completion tokens."""
    return tokenizer.decode(example.ids[example.completion], clean_up_tokenization_spaces=False)


def documented(name: str):
    """A function that the documentation shows, made by running its definition."""
    page = (STUDIES.parent / "docs/winner.md").read_text()
    python = "".join(block.split("```")[0] for block in page.split("```python\n")[1:])
    (shown,) = (each for each in ast.parse(python).body if isinstance(each, ast.FunctionDef) and each.name == name)
    found: dict[str, Callable] = {}
    exec(compile(ast.Module([shown], []), "docs/winner.md", "exec"), found)
    return found[name]


@pytest.mark.parametrize("mode", ["auto", "plain"])
@pytest.mark.parametrize("template", [None, CHATML, LLAMA2, THINKING], ids=["none", "chatml", "llama2", "thinking"])
def test_the_documentation_asks_with_the_prompt_of_the_training(template, mode):
    tokenizer = AutoTokenizer.from_pretrained(STUDIES / "models/pydoc-llama")
    tokenizer.chat_template = template
    turns = [("user", "What is it?", 0), ("assistant", "A laptop.", 0), ("user", "And its trouble?", 0)]
    trained = tokenised(chat(*turns, ("assistant", "The screen is dim.")), tokenizer, chat_template=mode)
    prompt = trained.ids[: int(trained.completion.int().argmax())]
    messages = [{"role": role, "content": text} for role, text, _ in turns]
    asked = documented("prompt_of")(messages, tokenizer, mode)["input_ids"][0]
    assert tokenizer.decode(asked) == tokenizer.decode(prompt)


@settings(deadline=None, max_examples=150)
@given(prompt=texts, answer=filled)
def test_completion_tokens_decode_back_to_the_completion(prompt, answer):
    tokenizer = tiny_tokenizer()
    example = tokenised(TextExample(prompt, answer, 1), tokenizer)
    decoded = said(example, tokenizer)
    assert decoded.endswith(f"{answer}</s>")
    joined = decoded.removesuffix(f"{answer}</s>")  # of the prompt, in the token that straddles the border
    assert prompt.endswith(joined)
    without_first = tokenizer.decode(example.ids[example.completion][1:], clean_up_tokenization_spaces=False)
    assert not without_first.endswith(f"{answer}</s>")  # which does cover a part of the completion
    assert example.completion_bytes == len(answer.encode())
    assert example.ids.tolist()[:-1] == tokenizer(prompt + answer)["input_ids"]


@settings(deadline=None, max_examples=100)
@given(turns=st.lists(st.tuples(texts, filled), min_size=1, max_size=3))
def test_every_assistant_turn_of_a_templated_chat_is_a_completion(turns):
    tokenizer = with_template(CHATML)
    example = chat(*(turn for question, answer in turns for turn in (("user", question), ("assistant", answer))))
    one = tokenised(example, tokenizer)
    assert said(one, tokenizer) == "".join(f"{answer}<|im_end|>" for _, answer in turns)
    assert one.completion_bytes == sum(len(answer.encode()) for _, answer in turns)


@settings(deadline=None, max_examples=100)
@given(turns=st.lists(st.tuples(texts, filled), min_size=1, max_size=3))
def test_every_assistant_turn_of_a_plain_chat_is_a_completion(turns):
    tokenizer = tiny_tokenizer()
    example = chat(*(turn for question, answer in turns for turn in (("user", question), ("assistant", answer))))
    one = tokenised(example, tokenizer)
    text = "\n".join(f"User: {question}\nAssistant: {answer}" for question, answer in turns)
    assert tokenizer.decode(one.ids, clean_up_tokenization_spaces=False) == f"{text}</s>"
    pieces = [f" {answer}" for _, answer in turns]
    decoded = said(one, tokenizer)
    assert decoded.endswith("</s>")
    for piece in pieces:  # in order; a token may join the end of one with the line break after it
        before, found, decoded = decoded.partition(piece)
        assert found
        assert before.strip("\n\r\x0b\x0c\x85\u2028 :") in {"", *"User"}


@settings(deadline=None, max_examples=60)
@given(prompt=texts, answer=filled)
def test_sentencepiece_like_tokenizers_lose_nothing(prompt, answer):
    tokenizer = tiny_tokenizer("pieces")
    one = tokenised(TextExample(prompt, answer, 1), tokenizer)
    assert one.ids.tolist() == [*tokenizer(prompt + answer)["input_ids"], tokenizer.eos_token_id]
    assert one.ids[0] == tokenizer.bos_token_id  # this kind adds it by itself
    assert not one.completion[0]
    decoded = said(one, tokenizer)
    assert answer.lstrip(" ") in decoded or "\ufffd" in decoded or "▁" in answer


def test_nothing_is_put_in_front_that_the_tokenizer_does_not_add():
    tokenizer = tiny_tokenizer()
    one = tokenised(TextExample("Q:", " A", 1), tokenizer)
    assert tokenizer.bos_token_id not in one.ids


@pytest.mark.parametrize("record", [conversation, completion])
@pytest.mark.parametrize("template", [None, CHATML])
def test_tokens_agree_with_those_of_tokenised_prefixes(record, template):
    tokenizer = with_template(template)
    for number in range(20):
        raw = record(number)
        if "prompt" in raw:
            example = TextExample(raw["prompt"], raw["completion"], 1)
        else:
            example = chat(*((turn["role"], turn["content"]) for turn in raw["messages"]))
        ids, marks = reference_tokens(raw, tokenizer)
        one = tokenised(example, tokenizer)
        assert one.ids.tolist() == ids
        assert one.completion.tolist() == marks


def test_a_weight_of_zero_leaves_a_message_out():
    for template in (None, CHATML):
        tokenizer = with_template(template)
        one = tokenised(
            chat(("user", "a"), ("assistant", "wrong", 0), ("user", "b"), ("assistant", "right")), tokenizer
        )
        assert "right" in said(one, tokenizer)
        assert "wrong" not in said(one, tokenizer)


def test_plain_ignores_the_template():
    tokenizer = with_template(CHATML)
    one = tokenised(chat(("system", "s"), ("user", "a"), ("assistant", "b")), tokenizer, chat_template="plain")
    assert tokenizer.decode(one.ids) == "System: s\nUser: a\nAssistant: b</s>"
    assert said(one, tokenizer) == " b</s>"


def test_a_plain_chat_that_ends_with_the_user_is_not_closed():
    tokenizer = tiny_tokenizer()
    one = tokenised(chat(("user", "a"), ("assistant", "b"), ("user", "c")), tokenizer)
    assert tokenizer.decode(one.ids) == "User: a\nAssistant: b\nUser: c"


def test_a_template_that_trims_and_has_no_generation_prompt():
    tokenizer = with_template(LLAMA2)
    one = tokenised(
        chat(("user", "Hi"), ("assistant", "  one \n"), ("user", "[INST]"), ("assistant", "two")), tokenizer
    )
    assert said(one, tokenizer) == " one </s> two </s>"  # the spaces are part of the words' tokens
    assert one.completion_bytes == 6


def test_a_content_that_also_stands_elsewhere_is_found_in_its_place():
    tokenizer = with_template(CHATML)
    one = tokenised(
        chat(("user", "assistant"), ("assistant", "assistant"), ("user", "a"), ("assistant", "a")), tokenizer
    )
    assert said(one, tokenizer) == "assistant<|im_end|>a<|im_end|>"


def test_a_template_that_rewrites_reasoning():
    tokenizer = with_template(THINKING)
    plain = tokenised(chat(("user", "q"), ("assistant", "one"), ("user", "r"), ("assistant", "two")), tokenizer)
    assert said(plain, tokenizer) == "one<|im_end|>two<|im_end|>"
    thought = chat(("user", "q"), ("assistant", "<think>\nhm, hm\n</think>\n\nfour"))
    assert said(tokenised(thought, tokenizer), tokenizer) == "hm, hm\n</think>\n\nfour<|im_end|>"


def test_a_template_that_refuses_names_the_line_and_the_way_out():
    example = ChatExample(chat(("system", "s"), ("user", "a"), ("assistant", "b")).messages, 17)
    with pytest.raises(InvalidDataset, match=r"line 17: .*Only user and assistant roles.*'plain'") as caught:
        tokenise([example], with_template(LLAMA2), 100, field="data.validation")
    assert caught.value.line == 17
    assert caught.value.field == "data.validation"


def test_a_template_that_leaves_an_answer_out_is_refused():
    example = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    with pytest.raises(InvalidDataset, match="leaves message 4 out"):
        tokenise([example], with_template(FIRST_ONLY), 100)


def test_long_examples_are_cut_at_the_end_and_counted():
    tokenizer = tiny_tokenizer()
    short, cut = TextExample("a", "b", 1), TextExample("a", "東京東京", 2)
    beyond = TextExample("prompt " * 40, "b", 3)
    whole = len(tokenised(cut, tokenizer))
    split = tokenise([short, cut, beyond], tokenizer, whole - 2)
    assert [len(example) for example in split.examples] == [3, whole - 2]
    assert [example.truncated for example in split.examples] == [False, True]
    assert (split.truncated, split.left_out) == (2, 1)
    assert split.tokens_lost == 2 + len(tokenised(beyond, tokenizer))
    assert split.examples[0].completion_bytes == 1
    assert split.examples[1].completion_bytes in (3, 6, 9)  # whole characters that the kept tokens touch


def test_the_first_token_is_never_predicted():
    one = tokenised(TextExample("", "answer", 1), tiny_tokenizer())
    assert bool(one.completion[0])
    assert one.completion_tokens == len(one) - 1
    assert one.prompt_tokens == 0


def test_white_space_tokens_of_a_completion_count():
    tokenizer = tiny_tokenizer()
    one = tokenised(TextExample("x:", "\n\n   \n y", 1), tokenizer)
    assert said(one, tokenizer) == "\n\n   \n y</s>"


def test_the_fingerprint_knows_tokenizer_and_template():
    prints = {
        tokenizer_fingerprint(with_template(template, kind))
        for template in (None, CHATML)
        for kind in ("bytes", "pieces")
    }
    assert len(prints) == 4
    assert tokenizer_fingerprint(with_template(None)) == tokenizer_fingerprint(with_template(None))


@dataclass
class Naive:
    """A micro-batch as one would write it down, row by row."""

    ids: list[list[int]]
    predictions: list[tuple[int, int, bool]]
    """Place in the flattened ids, target, completion."""
    beginnings: list[tuple[int, ...]]
    """Of each place, the tokens of its row up to there; of padding, none."""
    positions: list[int]


def naive(rows, packs: bool) -> Naive:
    """Rows are (example, whether prompts count)."""
    width = max(len(example) for example, _ in rows)
    lines, predictions, beginnings, positions = [], [], [], []
    for example, prompts in rows:
        ids, said = example.ids.tolist(), example.completion.tolist()
        for position in range(len(ids) if packs else width):
            if 0 < position < len(ids) and (prompts or said[position]):
                predictions.append((len(beginnings) - 1, ids[position], said[position]))
            beginnings.append(tuple(ids[: position + 1]) if position < len(ids) else ())
            positions.append(position)
        lines.append(ids + [0] * (0 if packs else width - len(ids)))
    return Naive([[token for line in lines for token in line]] if packs else lines, predictions, beginnings, positions)


def test_a_template_that_writes_the_date_writes_the_same_one_every_day():
    template = "{{ strftime_now('%d %b %Y') }}{% for m in messages %}\n{{ m.role }}: {{ m.content }}{% endfor %}"
    example = ChatExample((Message("user", "hi", 0), Message("assistant", "you", 1)), 1)
    tokenizer = with_template(template)
    assert "26 Jul 2024" in tokenizer.decode(tokenised(example, tokenizer).ids)


def a_split(lengths: list[int], seed: int) -> TokenisedSplit:
    random = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = random.integers(1, 50_000, offsets[-1]).astype(np.int32)
    marks = random.random(offsets[-1]) < 0.5
    tokens = np.array([marks[start + 1 : end].sum() for start, end in itertools.pairwise(offsets)], dtype=np.int64)
    return TokenisedSplit(ids, marks, offsets, tokens, tokens, tokens > 5, 0, 0, 0)


CPU = torch.device("cpu")
a_share = st.tuples(st.lists(st.integers(1, 30), min_size=1, max_size=8), st.booleans())


@given(st.lists(a_share, min_size=1, max_size=4), st.integers(1, 200), st.booleans())
def test_micro_batches_are_those_that_one_would_write_row_by_row(given_shares, budget, packs):
    lengths = [length for lengths, _ in given_shares for length in lengths]
    split = a_split(lengths, len(lengths))
    starts = itertools.accumulate((len(lengths) for lengths, _ in given_shares), initial=0)
    shares = [
        Share(split.examples[start : start + len(lengths)], prompts)
        for start, (lengths, prompts) in zip(starts, given_shares, strict=False)
    ]
    left = [
        (number, place, example)
        for number, share in enumerate(shares)
        for place, example in sorted(enumerate(share.examples), key=lambda pair: -len(pair[1]))
    ]
    if not packs:
        left.sort(key=lambda row: -len(row[2]))
    pairs = set[tuple[tuple[int, ...], int]]()
    for batch in micro_batches(shares, budget, Layout(packs, CPU)):
        count = sum(len(group.own) for group in batch.groups) if packs else len(batch.ids)
        rows, left = sorted(left[:count], key=lambda row: row[0]), left[count:]
        expected = naive([(example, shares[number].prompts) for number, _, example in rows], packs)
        assert batch.ids.tolist() == expected.ids
        found = zip(batch.places.tolist(), batch.targets.tolist(), batch.completion.tolist(), strict=True)
        assert list(found) == expected.predictions
        numbered = zip(expected.beginnings, batch.tokens.tolist(), strict=True)
        pairs |= {(beginning, number) for beginning, number in numbered if beginning}
        if packs:
            assert batch.positions is not None
            assert batch.positions.tolist() == [expected.positions]
        assert [part.share for part in batch.parts] == sorted({number for number, _, _ in rows})
        for part in batch.parts:
            own = [example for number, _, example in rows if number == part.share]
            width = len(batch.ids[0])
            assert part.tokens[1] - part.tokens[0] == sum(len(example) if packs else width for example in own)
        ends = [0, *(part.tokens[1] for part in batch.parts)]
        assert [part.tokens[0] for part in batch.parts] == ends[:-1]
        counted = [0, *(part.predictions[1] for part in batch.parts)]
        assert [part.predictions[0] for part in batch.parts] == counted[:-1]
        assert (ends[-1], counted[-1]) == (batch.ids.numel(), len(batch.places))
    assert not left
    assert len(pairs) == len({beginning for beginning, _ in pairs}) == len({number for _, number in pairs})


def agree(one: MicroBatch, two: MicroBatch) -> bool:
    return all(
        torch.equal(getattr(one, name), getattr(two, name)) for name in ("ids", "places", "targets", "completion")
    )


def test_the_micro_batches_of_a_split_are_kept_for_one_kind_at_a_time(monkeypatch):
    split = a_split([5, 3, 9, 4], 0)

    def kept(budget: int, packs: bool = True):
        return kept_micro_batches(split.examples, budget, Layout(packs, CPU))

    first = kept(12)
    assert kept(12) is first
    shares = [Share(split.examples, prompts=True)]
    for one, two in zip(first, micro_batches(shares, 12, Layout(packs=True, device=CPU)), strict=True):
        assert agree(one, two)
    assert len(list(kept(1))) == 4
    assert kept(12) is not first
    assert next(iter(kept(12, packs=False))).positions is None
    with torch.inference_mode():
        made_inside = kept(13)
    assert not any(batch.ids.is_inference() for batch in made_inside)
    monkeypatch.setattr("hpsearch.finetune.batches.MOST_KEPT_TOKENS", 20)
    assert kept(14) is not kept(14)


def test_examples_are_a_sequence():
    examples = a_split([5, 3, 9, 4], 0).examples
    assert [len(example) for example in examples] == [5, 3, 9, 4]
    assert len(examples[-1]) == 4
    assert [len(example) for example in examples[1:3]] == [3, 9]
    for place in (4, -5):
        with pytest.raises(IndexError):
            examples[place]
    assert not a_split([], 0).examples


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_check_foretells_the_tokens_of_an_epoch(split: str) -> None:
    """Without torch, from the text alone, before anything is queued."""
    model = describe(str(STUDIES / "models/pydoc-llama"))
    path = STUDIES / f"data/tickets/{split}.jsonl"
    foretold = lint(path, role="validation", max_length=512, count_tokens=token_counter(model)).tokens
    tokenizer = AutoTokenizer.from_pretrained(model.path)
    examples = [parsed for parsed in parse_examples(path, "auto") if not isinstance(parsed, Fault)]
    exact = sum(len(one) for one in tokenise(examples, tokenizer, 512).examples)
    assert foretold == pytest.approx(exact, rel=0.05)
