"""Computing what prompts share once changes no number: against lm-eval's own hf backend, and one sequence at a time."""

import copy
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from harness import attention, decoding, lm, scoring
from harness.attention import Behind, Fill, Packed, Prefix, Slots, Step, rows_attention
from harness.base import LoadedBase
from harness.cell import Adapted, Base, Run
from harness.decoding import FEWEST, generate
from harness.lm import Asker
from harness.scoring import PASS, Continuation, Room, score, shared_length
from tests.test_train import ARCHITECTURES, SHAPE

WORDS = "one two three four five six seven eight nine ten red green blue Paris France sky Yes No".split()
GREEDY = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False}


def build(name: str, kind: str, **shape: Any) -> Any:
    """A random model whose logits are spread, so that rounding turns no greedy choice, and whose attention counts."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**shape)).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.15, generator=generator)
    return model.requires_grad_(False)


def llama(**shape: Any) -> Any:
    return build("Llama", "LlamaForCausalLM", **SHAPE | shape)


def base_of(model: Any, tokenizer: Any, name: str = "x") -> LoadedBase:
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    return LoadedBase(Base(name=name), model, tokenizer)


@pytest.fixture(scope="module")
def small(tokenizer: Any) -> LoadedBase:
    base = base_of(llama(vocab_size=len(tokenizer)), tokenizer)
    assert base.attends_by_rows  # or all of this would compare lm-eval with itself
    return base


def asker(base: LoadedBase, model: Any = None, *, chat: bool = False, **run: Any) -> Asker:
    asking = Asker(base, Adapted(model or base.model), chat=chat, run=Run(**{"eval_batch_size": 2} | run))
    assert asking.shares == base.attends_by_rows
    return asking


def stock(base: LoadedBase, model: Any = None, *, chat: bool = False, batch: int = 1) -> HFLM:
    bos = False if chat else None
    return HFLM(pretrained=model or base.model, tokenizer=base.tokenizer, batch_size=batch, add_bos_token=bos)


def requests(kind: str, arguments: list[Any]) -> list[Instance]:
    return [Instance(kind, {}, args, i, metadata=("t", i, 1)) for i, args in enumerate(arguments)]  # type: ignore[arg-type]


def text(words: int, seed: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def questions() -> list[tuple[str, str]]:
    """Few-shot contexts of three subjects, their questions and choices; and all that might trip over them."""
    asked = []
    for subject in range(3):
        shots = text(40, subject)
        for question in range(3):
            asked += [(f"{shots}. {text(4, 10 * subject + question)}?", f" {c}") for c in ("one", "two red", "No")]
    asked += asked[:2]  # duplicates
    asked += [
        (text(40, 0), ". Is"),
        (text(40, 0), ""[:0] or "."),
        (text(20, 0), " " + text(12, 7)),
    ]  # prefixes of others
    asked += [("", "one two"), ("", "one"), ("sky", " red"), ("sky ", "red"), ("sky red", " blue sky")]
    asked += [(text(200, 3), " green"), (text(200, 3), " " + text(30, 4)), (text(140, 3), "\n")]  # longer than 128
    return asked


def check_likelihoods(base: LoadedBase, model: Any = None, near: float = 1e-4, batch: int = 4, **run: Any) -> None:
    asked = requests("loglikelihood", questions())
    ours = asker(base, model, **run).loglikelihood(asked)
    theirs = stock(base, model, batch=batch).loglikelihood(asked, disable_tqdm=True)
    assert [logprob for logprob, _ in ours] == pytest.approx([logprob for logprob, _ in theirs], abs=near)
    if near < 1e-2:
        assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


def prompts() -> list[str]:
    """Texts to go on from: enough of one beginning to be grouped, some alone, duplicates, one token, too long."""
    many = [f"{text(20, 0)}. {text(1 + i % 5, i)}" for i in range(20)]
    return [*many, *many[:2], text(20, 0), text(9, 50), text(30, 51), text(200, 3), "x", ""]


def check_answers(base: LoadedBase, model: Any = None, settings: dict[str, Any] = GREEDY, **run: Any) -> None:
    """Asked once, and asked three times at once, where prompts are held apart from their answers."""
    asked = requests("generate_until", [(p, settings) for p in prompts()])
    theirs = stock(base, model).generate_until(asked, disable_tqdm=True)
    for times in (1, 3):
        assert asker(base, model, **run).generate_until(asked * times) == theirs * times
    assert len(set(theirs)) > 8


def continued(model: Any, ids: list[list[int]], count: int, tokens_per_pass: int = 64, cache: int = 2**30) -> Any:
    """`count` tokens after each prompt by `generate`, greedily, with no end."""
    return generate(
        model,
        ids,
        max_new_tokens=count,
        pick=lambda _rows, _ids, logits: logits.argmax(-1),
        ended=lambda _: False,
        room=Room(tokens_per_pass),
        cache_bytes=cache,
    )


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The tokens of every forward pass."""
    seen: list[int] = []
    hook = model.register_forward_pre_hook(
        lambda _, args, named: seen.append(named["input_ids"].numel()), with_kwargs=True
    )
    try:
        yield seen
    finally:
        hook.remove()


# --- against lm-eval's hf backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens_per_pass", [3, 7, 64, 100_000])
def test_likelihoods_are_those_of_stock_lm_eval(small: LoadedBase, tokens_per_pass: int) -> None:
    check_likelihoods(small, tokens_per_pass=tokens_per_pass)


@pytest.mark.parametrize(("tokens_per_pass", "gib"), [(1, 4.0), (7, 1e-9), (64, 5e-5), (100_000, 4.0)])
def test_greedy_answers_are_those_of_stock_lm_eval(small: LoadedBase, tokens_per_pass: int, gib: float) -> None:
    check_answers(small, tokens_per_pass=tokens_per_pass, kv_cache_gib=gib)


@pytest.mark.parametrize("count", [1, 2, 200])
def test_any_number_of_prompts(small: LoadedBase, count: int) -> None:
    asked = [f"{text(3, i // 20)} {text(3, i)}" for i in range(count)]
    said = requests("generate_until", [(p, GREEDY | {"max_gen_toks": 2}) for p in asked])
    assert asker(small).generate_until(said) == stock(small, batch=50).generate_until(said, disable_tqdm=True)
    scored = requests("loglikelihood", [(p, " red") for p in asked])
    ours, theirs = asker(small).loglikelihood(scored), stock(small, batch=50).loglikelihood(scored, disable_tqdm=True)
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=1e-4)


@pytest.mark.parametrize(
    "settings", [{"max_gen_toks": 1}, {"until": ["r", "qqqqq", "\n"]}, {"until": "e"}, {"until": ""}]
)
def test_other_settings_of_greedy_decoding(small: LoadedBase, settings: dict[str, Any]) -> None:
    asked = requests("generate_until", [(p, GREEDY | settings) for p in prompts()])
    assert asker(small).generate_until(asked) == stock(small).generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize("tokens_per_pass", [7, 1024])
def test_rolling_likelihoods_of_texts_longer_than_the_context(small: LoadedBase, tokens_per_pass: int) -> None:
    texts = [text(n, seed) for n, seed in ((3, 0), (300, 1), (300, 1), (90, 1), (301, 2))] + ["x"]
    asked = requests("loglikelihood_rolling", [(t,) for t in texts])
    ours = asker(small, tokens_per_pass=tokens_per_pass).loglikelihood_rolling(asked, disable_tqdm=True)
    theirs = stock(small, batch=3).loglikelihood_rolling(asked, disable_tqdm=True)
    assert ours == pytest.approx(theirs, abs=1e-3, rel=1e-6)


def test_chat_templates_and_system_prompts(small: LoadedBase) -> None:
    ours, theirs = asker(small, chat=True), stock(small, chat=True)
    turns = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": text(6, i)}] for i in range(18)
    ] + [[{"role": "user", "content": text(4, 3)}]]
    written = [theirs.apply_chat_template(t) for t in turns]
    assert [ours.apply_chat_template(t) for t in turns] == written
    asked = requests("generate_until", [(p, GREEDY) for p in written])
    assert ours.generate_until(asked) == theirs.generate_until(asked, disable_tqdm=True)
    scored = requests("loglikelihood", [(p, c) for p in written for c in ("one", "red sky")])
    got, expected = ours.loglikelihood(scored), theirs.loglikelihood(scored, disable_tqdm=True)
    assert [a for a, _ in got] == pytest.approx([a for a, _ in expected], abs=1e-4)
    assert [g for _, g in got] == [g for _, g in expected]


@pytest.mark.parametrize("given", ["<|bos|>one two", "one two"])
def test_a_beginning_of_text_is_written_once(small: LoadedBase, given: str) -> None:
    scored, asked = requests("loglikelihood", [(given, " red")]), requests("generate_until", [(given, GREEDY)])
    with counted(small.model) as seen:
        (ours,) = asker(small).loglikelihood(scored)
    assert seen == [len(small.tokenizer("one two")["input_ids"])]
    assert ours[0] == pytest.approx(stock(small).loglikelihood(scored, disable_tqdm=True)[0][0], abs=1e-4)
    assert asker(small).generate_until(asked) == stock(small).generate_until(asked, disable_tqdm=True)


@pytest.mark.parametrize("bos", [None, False, True])
def test_texts_encoded_together_are_those_lm_eval_encodes_one_by_one(
    small: LoadedBase, bos: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("harness.lm.AT_ONCE", 7)
    plain = [(context, answer) for context, answer in questions() if context]
    asked = [*plain, *((f"<|bos|>{c}", a) for c, a in plain), ("one \n ", "two"), ("\n", " red"), ("one", "<|bos|>")]
    ours, theirs = asker(small), stock(small)
    ours.add_bos_token = theirs.add_bos_token = bos
    expected = {pair: theirs._encode_pair(*pair) for pair in asked}
    calls, encode = [], small.tokenizer.encode
    monkeypatch.setattr(small.tokenizer, "encode", lambda *a, **n: calls.append(a) or encode(*a, **n))
    assert dict(ours._encode_pairs(asked)) == expected
    assert len(calls) <= 2 * math.ceil(len(asked) / 7)
    assert not ours._known


@pytest.mark.parametrize(("context", "answer"), [(" ", "one"), ("one", ""), ("one", " red" * 200)])
def test_what_stock_lm_eval_refuses_is_not_scored(
    small: LoadedBase, tokenizer: Any, context: str, answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No context token to predict from, nothing to predict, an answer longer than the model's context."""
    encode = tokenizer.encode
    monkeypatch.setattr(tokenizer, "encode", lambda text, **_: encode(text, add_special_tokens=False))
    asked = requests("loglikelihood", [(context, answer)])
    with pytest.raises(AssertionError):
        stock(small).loglikelihood(asked, disable_tqdm=True)
    with pytest.raises(AssertionError):
        asker(small).loglikelihood(asked)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "kind", "shape", "fitting"), ARCHITECTURES, ids=[a[0] for a in ARCHITECTURES])
def test_every_architecture(
    name: str,
    kind: str,
    shape: dict[str, Any],
    fitting: bool,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Those that do not fit are asked as by lm-eval, by themselves, and it is said once."""
    if shape.get("sliding_window") == 16:
        shape = shape | {"sliding_window": 300}
    lm.say_once.cache_clear()
    base = base_of(build(name, kind, **shape | {"vocab_size": len(tokenizer)}), tokenizer, name)
    assert base.attends_by_rows == fitting
    asked = requests("loglikelihood", questions())
    said = requests("generate_until", [(p, GREEDY) for p in prompts()])
    asking, expected = asker(base), stock(base, batch=2 if not fitting else 8)
    ours, theirs = asking.loglikelihood(asked), expected.loglikelihood(asked, disable_tqdm=True)
    assert [a for a, _ in ours] == pytest.approx([a for a, _ in theirs], abs=1e-3 if fitting else 1e-5)
    assert [g for _, g in ours] == [g for _, g in theirs]
    assert asking.generate_until(said) == stock(base, batch=1 if fitting else 2).generate_until(said, disable_tqdm=True)
    asker(base)
    assert capsys.readouterr().err.count("cannot be laid out in rows") == (not fitting)


def test_soft_capped_attention_where_the_cap_counts(tokenizer: Any) -> None:
    """At 1.0 the cap bends every score; transformers applies it in its eager attention."""
    shape = SHAPE | {"head_dim": 8, "sliding_window": 300, "attn_logit_softcapping": 1.0, "vocab_size": len(tokenizer)}
    model = build("Gemma2", "Gemma2ForCausalLM", **shape)
    model.set_attn_implementation("eager")
    with torch.no_grad():
        capped = model(torch.arange(20)[None]).logits
        model.config.attn_logit_softcapping = None
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
        assert (model(torch.arange(20)[None]).logits - capped).abs().max() > 0.01
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = 1.0
    base = base_of(model, tokenizer)
    assert base.attends_by_rows
    check_likelihoods(base, near=1e-3)
    check_answers(base)


def test_latent_attention_with_values_narrower_than_keys(tokenizer: Any) -> None:
    """DeepSeek's: its configuration says neither the width of a key nor that every head has one."""
    shape = SHAPE | {
        "vocab_size": len(tokenizer),
        "num_key_value_heads": 4,
        "first_k_dense_replace": 2,
        "v_head_dim": 12,
    }
    latent = {"q_lora_rank": 16, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8}
    base = base_of(build("DeepseekV3", "DeepseekV3ForCausalLM", **shape, **latent), tokenizer)
    assert base.attends_by_rows
    assert kept_bytes(base.model) == 2 * 4 * (16 + 12) * 4  # layers, heads, widths of a key and a value, bytes
    check_likelihoods(base)
    check_answers(base, kv_cache_gib=1e-4)


@pytest.mark.parametrize(("window", "shares"), [(128, True), (60, False)])
def test_prompts_longer_than_a_sliding_window_are_asked_plainly(
    tokenizer: Any, window: int, shares: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    lm.say_once.cache_clear()
    shape = SHAPE | {"sliding_window": window, "vocab_size": len(tokenizer)}
    base = base_of(build("Mistral", "MistralForCausalLM", **shape), tokenizer)
    assert base.attends_by_rows
    check_likelihoods(base)
    check_answers(base)
    assert capsys.readouterr().err.count("longer than the model's sliding window") == (not shares)


def test_rotations_that_change_with_the_length_of_a_pass_are_not_shared_among_lengths(tokenizer: Any) -> None:
    """Phi 3's LongRoPE turns every position of a pass by other angles as soon as one of them is past 40."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [3.0] * 4,
        "original_max_position_embeddings": 40,
    }
    base = base_of(llama(vocab_size=len(tokenizer), rope_parameters=rope, max_position_embeddings=128), tokenizer)
    check_likelihoods(base, batch=1, eval_batch_size=1)
    check_answers(base, eval_batch_size=1)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dora", [False, True])
def test_adapters(small: LoadedBase, dora: bool) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", use_dora=dora, lora_dropout=0.1)
    torch.manual_seed(0)
    model = get_peft_model(copy.deepcopy(small.model), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    check_likelihoods(small, model)
    check_answers(small, model)
    said = requests("generate_until", [(p, GREEDY) for p in prompts()])
    assert asker(small, model).generate_until(said) != asker(small).generate_until(said)


def test_bfloat16_agrees_up_to_its_own_rounding(tokenizer: Any) -> None:
    """Stock lm-eval, too, is this far from float32; sharing may not add to it."""
    exact = base_of(llama(vocab_size=len(tokenizer)), tokenizer)
    rounded = base_of(copy.deepcopy(exact.model).to(torch.bfloat16), tokenizer)
    assert rounded.attends_by_rows
    asked = requests("loglikelihood", questions())
    truth, ours, theirs = (
        torch.tensor([a for a, _ in model.loglikelihood(asked, disable_tqdm=True)])
        for model in (stock(exact), asker(rounded), stock(rounded))
    )
    assert (ours - truth).abs().mean() < 1.2 * (theirs - truth).abs().mean()
    said = requests("generate_until", [(p, GREEDY) for p in prompts()])
    ours, theirs = asker(rounded).generate_until(said), stock(rounded).generate_until(said, disable_tqdm=True)
    assert sum(a == b for a, b in zip(ours, theirs, strict=True)) > len(ours) / 2


# --- how answers are decoded ----------------------------------------------------------------------------------------


@pytest.fixture
def with_defaults(small: LoadedBase) -> Iterator[Callable[..., LoadedBase]]:
    """The small model with other generation defaults."""
    before = copy.deepcopy(small.model.generation_config)

    def change(**settings: Any) -> LoadedBase:
        small.model.generation_config.update(**settings)
        return small

    yield change
    small.model.generation_config = before


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"repetition_penalty": 1.5}, True),
        ({"do_sample": True, "temperature": 0.6, "top_p": 0.9}, True),  # as Llama's; a greedy task overrules it
        ({"do_sample": False, "num_beams": 1}, True),
        ({"no_repeat_ngram_size": 2}, False),
        ({"min_new_tokens": 4}, False),
        ({"suppress_tokens": [7, 8, 9]}, False),
        ({"num_beams": 3}, False),
        ({"renormalize_logits": True}, False),
        ({"prompt_lookup_num_tokens": 3}, False),
        ({"max_time": 1000.0}, False),
    ],
)
@pytest.mark.parametrize("by", ["the model", "the task"])
def test_generation_settings_of_the_model_and_of_the_task(
    with_defaults: Callable[..., LoadedBase],
    settings: dict[str, Any],
    shares: bool,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[int] = []
    decode = lm.generate
    monkeypatch.setattr(lm, "generate", lambda *a, **k: calls.append(1) or decode(*a, **k))
    base = with_defaults(**settings) if by == "the model" else with_defaults()
    given = {"max_gen_toks": 8, "until": ["\n\n"]} | (settings if by == "the task" else {}) | {"do_sample": False}
    asked = requests("generate_until", [(p, given) for p in prompts()[:: 1 if shares else 4] if p])
    asking = asker(base, eval_batch_size=1)
    ours = asking.generate_until(asked)
    assert ours == stock(base).generate_until(asked, disable_tqdm=True)
    assert bool(calls) == shares
    assert asking.shares


@pytest.mark.parametrize("as_list", [True, False])
def test_any_of_several_ends_ends_an_answer(with_defaults: Callable[..., LoadedBase], as_list: bool) -> None:
    asked = requests("generate_until", [(p, GREEDY | {"max_gen_toks": 24}) for p in prompts()])
    base = with_defaults()
    before = asker(base).generate_until(asked)
    said = continued(base.model, [base.tokenizer.encode(p) for p in prompts()[:20]], 24)
    often = [t for t, _ in Counter(t for tokens in said for t in tokens).most_common(3)]
    base = with_defaults(eos_token_id=often if as_list else often[0])
    ours = asker(base).generate_until(asked)
    assert ours == stock(base).generate_until(asked, disable_tqdm=True)
    assert sum(a != b for a, b in zip(ours, before, strict=True)) > 1


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.5},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 2.0, "top_p": 0.5, "repetition_penalty": 1.3},
    ],
)
def test_sampling_draws_from_the_same_distribution(small: LoadedBase, settings: dict[str, Any]) -> None:
    """Of the first two tokens, counted over many draws for three prompts; and again with the same seed."""
    draws, asked = 300, [f"{text(18, 1)} {w}" for w in ("one", "red two", "Paris")]
    settings = {"do_sample": True, "max_gen_toks": 2, "until": []} | settings
    instances = requests("generate_until", [(p, settings) for p in asked for _ in range(draws)])
    torch.manual_seed(0)
    ours = asker(small).generate_until(instances)
    torch.manual_seed(0)
    assert asker(small).generate_until(instances) == ours
    torch.manual_seed(1)
    assert asker(small).generate_until(instances) != ours
    theirs = stock(small, batch=400).generate_until(instances, disable_tqdm=True)
    for start in range(0, len(ours), draws):
        mine, others = (Counter(x[start : start + draws]) for x in (ours, theirs))
        assert len(mine) > 2
        spread = sum((mine[k] - others[k]) ** 2 / (mine[k] + others[k]) for k in mine | others)
        freedom = len(mine | others) - 1
        assert spread < freedom + 4 * (2 * freedom) ** 0.5 + 4  # chi squared


def test_a_prompt_without_a_token_begins_with_the_beginning_of_text(small: LoadedBase) -> None:
    """As an empty context does in log-likelihoods; lm-eval's hf backend goes on from padding."""
    empty, others = ("", GREEDY), [(p, GREEDY) for p in prompts() if p]
    ours = asker(small, chat=True).generate_until(requests("generate_until", [empty, *others]))
    expected = stock(small, chat=True)
    assert ours[1:] == expected.generate_until(requests("generate_until", others), disable_tqdm=True)
    assert ours[:1] == stock(small).generate_until(requests("generate_until", [empty]), disable_tqdm=True)


# --- attention by rows ----------------------------------------------------------------------------------------------


def scores(rows: int, heads: int, kv: int, queries: int, keys: int, width: int = 8, value: int = 8) -> Any:
    generator = torch.Generator().manual_seed(rows * 100 + queries)
    shapes = (rows, heads, queries, width), (rows, kv, keys, width), (rows, kv, keys, value)
    return [torch.randn(*shape, generator=generator) for shape in shapes]


@pytest.mark.parametrize("kv", [1, 2, 4])
@pytest.mark.parametrize("seen", ["all", "causal", "mask"])
@pytest.mark.parametrize("capped", [None, 1e6, 1.0])
def test_attention_and_its_log_sum_exp(kv: int, seen: str, capped: float | None) -> None:
    """The kernel for CPUs and the plain formula (a cap of a million is none) against float64 written out."""
    keys = 5 if seen == "causal" else 7
    q, k, v = scores(3, 4, kv, 5, keys)
    mask = None
    if seen == "mask":
        hidden = torch.rand(3, 1, 5, keys, generator=torch.Generator().manual_seed(0)) < 0.4
        hidden[..., 0] = False
        mask = torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf)
    out, lse = attention._attention(q, k, v, scale=0.3, softcap=capped, causal=seen == "causal", mask=mask)
    wide = [x.double().repeat_interleave(4 // x.shape[1], 1) for x in (q, k, v)]
    raw = wide[0] @ wide[1].transpose(-1, -2) * 0.3
    raw = raw if capped is None else capped * torch.tanh(raw / capped)
    raw = raw + (torch.full((5, keys), -torch.inf).triu(1) if seen == "causal" else 0 if mask is None else mask)
    torch.testing.assert_close(lse.double(), raw.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(out.double(), raw.softmax(-1) @ wide[2], atol=1e-5, rtol=1e-5)


def test_values_may_be_narrower_than_keys() -> None:
    """As in multi-head latent attention; the kernel for CPUs refuses them."""
    q, k, v = scores(2, 4, 4, 3, 3, value=6)
    out, _ = attention._attention(q, k, v, scale=0.3, softcap=None, causal=True)
    raw = q @ k.transpose(-1, -2) * 0.3 + torch.full((3, 3), -torch.inf).triu(1)
    torch.testing.assert_close(out, raw.softmax(-1) @ v, atol=1e-5, rtol=1e-5)
    slots, prefix, how = Slots(2, 9, q.device), Prefix(), {"scale": 0.3, "softcap": None}
    flat = [x.transpose(0, 1).flatten(1, 2)[None] for x in (q, k, v)]
    filled = Fill([3, 3], prefix, slots, torch.tensor([1, 0])).attend(0, *flat, **how)
    torch.testing.assert_close(filled, out.transpose(0, 1).flatten(1, 2)[None])
    assert Step(prefix, slots).attend(0, *(x[:, :, :2] for x in flat), **how).shape == (1, 4, 2, 6)


def test_the_plain_formula_gives_what_the_kernel_gives(small: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accelerators and capped scores take the one, CPUs the other."""
    real = attention._attention
    ids = [small.tokenizer.encode(c + a) for c, a in questions()[:20]]
    asked = [Continuation(i, 2) for i in ids]
    by_kernel, said = score(small.model, asked, Room(64)), continued(small.model, ids, 5)
    monkeypatch.setattr(attention, "_attention", lambda *a, softcap, **k: real(*a, softcap=1e7, **k))
    assert [a for a, _ in score(small.model, asked, Room(64))] == pytest.approx([a for a, _ in by_kernel], abs=1e-3)
    assert continued(small.model, ids, 5) == said


@pytest.mark.parametrize("capped", [None, 1.0])
def test_packed_rows_are_rows_alone(capped: float | None) -> None:
    q, k, v = (x.requires_grad_() for x in scores(1, 4, 2, 12, 12))
    how = {"scale": 0.3, "softcap": capped, "dropout": 0.0}
    together = Packed([3, 7, 2], q.device).attend(0, q, k, v, **how)
    (gradient,) = torch.autograd.grad(together[0, :, 3:10].sum(), k)
    assert gradient[:, :, [0, 1, 2, 10, 11]].abs().max() == 0
    for start, end in ((0, 3), (3, 10), (10, 12)):
        alone, _ = attention._attention(
            *(x[:, :, start:end] for x in (q, k, v)), causal=True, scale=0.3, softcap=capped
        )
        torch.testing.assert_close(together[:, :, start:end], alone, atol=1e-5, rtol=1e-5)


def test_a_prefix_is_a_stack() -> None:
    prefix, kept = Prefix(), torch.arange(40.0).view(1, 1, 20, 2)
    for start, end in ((0, 5), (5, 6), (6, 20)):
        prefix.keep(0, kept[:, :, start:end], -kept[:, :, start:end])
        prefix.length = end
    assert torch.equal(prefix.at(0)[0], kept)
    prefix.length = 4
    prefix.keep(0, kept[:, :, :3], kept[:, :, :3])
    prefix.length = 7
    key, value = prefix.at(0)
    assert torch.equal(key, torch.cat([kept[:, :, :4], kept[:, :, :3]], 2))
    assert torch.equal(value, torch.cat([-kept[:, :, :4], kept[:, :, :3]], 2))


def state(model: Any) -> Any:
    hooks = [name for name, m in model.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    own = {name: sorted(m.__dict__) for name, m in model.named_modules()}
    settings = model.config.to_dict(), model.generation_config.to_dict(), model.config._attn_implementation
    return hooks, own, settings, model.training, attention._active


@pytest.mark.parametrize("broken", [None, "model", "listener"])
@pytest.mark.parametrize("given", ["sdpa", "eager"])
def test_the_model_is_left_as_it_was(
    small: LoadedBase, given: str, broken: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = copy.deepcopy(small.model)
    model.set_attn_implementation(given)
    ids = torch.arange(9)[None]
    before, logits = state(model), model(ids).logits
    base = base_of(model, small.tokenizer)
    asked, said = requests("loglikelihood", questions()), requests("generate_until", [(p, GREEDY) for p in prompts()])
    asking = asker(base, tokens_per_pass=64)
    calls: list[int] = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if broken and len(calls) % 3 == 0:
            raise ZeroDivisionError

    @contextmanager
    def bar(**_: Any) -> Iterator[Any]:
        yield SimpleNamespace(update=fail)

    if broken == "listener":
        monkeypatch.setattr(lm, "tqdm", bar)
    hook = model.model.layers[1].register_forward_hook(fail) if broken == "model" else None
    for ask, of in ((asking.loglikelihood, asked), (asking.generate_until, said)):
        with pytest.raises(ZeroDivisionError) if broken else nullcontext():
            ask(of)
    if hook:
        hook.remove()
    assert state(model) == before
    assert torch.equal(model(ids).logits, logits)
    assert asking.shares


# --- the tree of what is scored -------------------------------------------------------------------------------------


def alone(model: Any, asked: Continuation) -> tuple[float, bool]:
    """A plain pass of one sequence."""
    logits = model(torch.tensor([asked.ids[:-1]])).logits[0, -asked.answer :].log_softmax(-1)
    answer = torch.tensor(asked.ids[-asked.answer :])
    return logits.gather(1, answer[:, None]).sum().item(), bool((logits.argmax(-1) == answer).all())


def trie(generator: random.Random, size: int, longest: int) -> list[list[int]]:
    """Sequences that branch off one another anywhere, some of them the same, of few tokens so that they also meet."""
    made = [[generator.randrange(3, 9)]]
    while len(made) < size:
        stem = generator.choice(made)[: generator.randrange(0, longest)]
        made.append((stem + generator.choices(range(3, 9), k=generator.randrange(1, longest // 2)))[:longest])
    return made


@pytest.fixture(scope="module")
def bare() -> Any:
    return llama()


@pytest.fixture
def cheap_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a pass cost little, so that small trees are cut as large ones are."""
    monkeypatch.setattr(scoring, "PASS", 4)
    monkeypatch.setattr(scoring, "PAIRS", 60)
    monkeypatch.setattr(decoding, "FEWEST", 3)


@pytest.mark.usefixtures("cheap_passes")
@pytest.mark.parametrize("seed", range(25))
def test_likelihoods_of_any_tree(bare: Any, seed: int) -> None:
    generator = random.Random(seed)
    asked = [
        Continuation(ids, generator.randrange(1, len(ids)))
        for ids in trie(generator, generator.choice((1, 2, 9, 30)), generator.choice((6, 30, 60)))
        if len(ids) > 1
    ]
    expected = [alone(bare, a) for a in asked]
    done: list[int] = []
    for budget in (generator.choice((1, 2, 5)), generator.choice((17, 60)), 10_000):
        found = score(bare, asked, Room(budget), done.append)
        assert [a for a, _ in found] == pytest.approx([a for a, _ in expected], abs=1e-4)
        assert [g for _, g in found] == [g for _, g in expected]
    assert sum(done) == 3 * len(asked)


@pytest.mark.usefixtures("cheap_passes")
@pytest.mark.parametrize("seed", range(10))
def test_answers_of_any_tree(bare: Any, seed: int) -> None:
    generator = random.Random(seed)
    ids = trie(generator, generator.choice((1, 5, 25)), generator.choice((4, 20, 50)))
    count = generator.choice((1, 2, 7))
    expected = []
    for prompt in ids:
        whole = list(prompt)
        for _ in range(count):
            whole.append(int(bare(torch.tensor([whole])).logits[0, -1].argmax()))
        expected.append(whole[len(prompt) :])
    for budget, cache in ((1, 1), (9, 30_000), (1000, 2**30)):
        assert continued(bare, ids, count, budget, cache) == expected


def tree_size(ids: list[list[int]]) -> int:
    return len({tuple(i[: n + 1]) for i in ids for n in range(len(i))})


@pytest.mark.parametrize("seed", range(8))
def test_no_token_is_computed_more_often_than_without_sharing(bare: Any, seed: int) -> None:
    generator = random.Random(seed)
    asked = [Continuation(ids, 1) for ids in trie(generator, 40, 60) if len(ids) > 1]
    read = [a.ids[:-1] for a in asked]
    for budget in (5, 30, 1024):
        with counted(bare) as seen:
            score(bare, asked, Room(budget))
        assert tree_size(read) <= sum(seen) <= sum(map(len, read))


def test_what_all_share_is_computed_once(bare: Any) -> None:
    """A few-shot context for each of two subjects, with 30 questions of 4 choices, in passes of 64 tokens."""
    generator = random.Random(0)

    def drawn(count: int) -> list[int]:
        return generator.choices(range(3, 128), k=count)

    asked = []
    for _ in range(2):
        shots = drawn(80)
        for _ in range(30):
            asked += [Continuation(shots + question + [c], 1) for question in [drawn(6)] for c in range(4)]
    with counted(bare) as seen:
        score(bare, asked, Room(64))
    assert tree_size([a.ids[:-1] for a in asked]) <= sum(seen) <= 2 * (80 + 30 * 6)
    assert max(seen) <= 64
    assert len(seen) <= 2 * (2 + 4)


def test_nothing_shared_costs_nothing(bare: Any) -> None:
    asked = [Continuation([i, *range(3, 20)], 3) for i in range(3, 100)]
    with counted(bare) as seen:
        score(bare, asked, Room(170))
    assert sum(seen) == 97 * 17
    assert len(seen) == 10  # rows of 17 fill their passes
    assert max(seen) == 170


def test_what_sharing_leaves_is_less_than_a_pass_costs(bare: Any) -> None:
    """A beginning that is not worth a pass of its own is read again by each part, less than PASS tokens in all."""
    asked = [Continuation([5, 6, 7, i, *range(3, 40)], 3) for i in range(3, 60)]
    with counted(bare) as seen:
        score(bare, asked, Room(1000))
    read = [a.ids[:-1] for a in asked]
    assert tree_size(read) <= sum(seen) < tree_size(read) + PASS


def test_the_prefix_is_set_back_after_each_range(bare: Any) -> None:
    asked = [Continuation([s] * 60 + [q] * 10 + [c], 1) for s in (3, 4) for q in range(5, 20) for c in (1, 2)]
    scorer = scoring._Scorer(bare, sorted(asked, key=lambda a: a.ids[:-1]), 64)
    lengths = []
    behind = scoring.Behind.__init__

    class Watching(Behind):
        def __init__(self, rows: list[int], prefix: Prefix, *given: Any, **named: Any) -> None:
            lengths.append(prefix.length)
            behind(self, rows, prefix, *given, **named)

    with pytest.MonkeyPatch.context() as patch, torch.no_grad(), rows_attention(bare):
        patch.setattr(scoring, "Behind", Watching)
        assert sum(map(len, scorer.run())) == len(asked)
    assert set(lengths) == {60}
    assert scorer.prefix.length == 0
    assert scorer.prefix.bytes() <= 2 * 64 * kept_bytes(bare)


def kept_bytes(model: Any) -> int:
    with rows_attention(model):
        return decoding.bytes_per_token(model)


@pytest.mark.parametrize("seed", range(5))
def test_shared_length(seed: int) -> None:
    generator = random.Random(seed)
    for _ in range(200):
        a, b = ([generator.randrange(2) for _ in range(generator.randrange(12))] for _ in range(2))
        expected = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
        assert shared_length(a, b) == expected


# --- groups and slots of what is generated --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(30))
def test_groups_hold_every_prompt_once_and_share_what_they_say(seed: int) -> None:
    generator = random.Random(seed)
    ids = sorted(trie(generator, generator.choice((1, 2, 20, 300)), generator.choice((5, 80))))
    groups = decoding._groups(ids)
    assert sorted(m for members, _ in groups for m in members) == list(range(len(ids)))
    for members, shared in groups:
        assert shared >= 0
        assert len({tuple(ids[m][:shared]) for m in members}) == 1
        assert min(len(ids[m]) for m in members) > shared  # the last token's logits are wanted


def test_subjects_with_a_context_each_are_groups() -> None:
    subjects = [[s] * 50 + [q, q + 1] for s in range(3, 7) for q in range(20)]
    assert [(len(m), n) for m, n in decoding._groups(sorted(subjects))] == [(20, 50)] * 4
    few = [[s] * 50 + [q, q + 1] for s in range(3, 7) for q in range(FEWEST - 1)]  # too few for a batch each
    assert [(len(m), n) for m, n in decoding._groups(sorted(few))] == [(len(few), 0)]
    nested = sorted([[3] * 20 + s for s in subjects])
    assert sorted((len(m), n) for m, n in decoding._groups(nested)) == [(20, 70)] * 4
    assert decoding._groups([[1]]) == [([0], 0)]
    assert decoding._groups([[1, 2, 3]] * 5) == [([0, 1, 2, 3, 4], 2)]


def test_a_shared_beginning_is_read_once_for_all_answers(bare: Any) -> None:
    ids = [[7] * 90 + [3 + i, 4] for i in range(40)]
    with counted(bare) as seen:
        continued(bare, ids, 3)
    assert sum(seen) == 1 + 90 + 40 * 2 + 40 * 2  # a token that is measured, beginning, ends, second and third token


@pytest.mark.parametrize("tokens", [0, 25, 100, 10_000])
def test_slots_take_no_more_than_their_share(bare: Any, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while rows leave; one row is always kept."""
    largest: list[int] = []
    at, step = Slots.at, Step.__init__

    def measured(slots: Slots, *given: Any) -> Any:
        kept = at(slots, *given)
        largest.append(sum(x.nbytes for pair in slots._kept.values() for x in pair))
        return kept

    monkeypatch.setattr(Slots, "at", measured)
    rows: list[int] = []
    monkeypatch.setattr(
        Step, "__init__", lambda s, prefix, slots, *more: rows.append(len(slots.held)) or step(s, prefix, slots, *more)
    )
    one = kept_bytes(bare)
    assert one == 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, width, bytes
    ids = [[3 + i % 100, 4, 5 + i // 100] for i in range(130 if tokens else 20)]
    assert len(continued(bare, ids, 5, cache=tokens * one)) == len(ids)
    assert max(largest) <= max(tokens, 8) * one
    assert max(rows) == max(1, min(Room(1).rows, tokens // 8))


def test_a_row_that_has_ended_makes_room(bare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 1 to 12 tokens in 4 slots take little more than a quarter of their tokens in steps."""
    ids = [[3 + i, 4] for i in range(24)]
    whole = continued(bare, ids, 12)
    rows: list[int] = []
    step = Step.__init__
    monkeypatch.setattr(
        Step, "__init__", lambda s, prefix, slots, *more: rows.append(len(slots.held)) or step(s, prefix, slots, *more)
    )
    wanted = {tuple(w): 1 + (5 * i) % 12 for i, w in enumerate(whole)}
    lengths = [1 + (5 * i) % 12 for i in range(24)]
    said = generate(
        bare,
        ids,
        max_new_tokens=12,
        pick=lambda _rows, _ids, logits: logits.argmax(-1),
        ended=lambda said: any(tuple(said) == w[: len(said)] and len(said) == n for w, n in wanted.items()),
        room=Room(64),
        cache_bytes=4 * 14 * kept_bytes(bare),
    )
    assert len(wanted) == 24
    assert said == [w[: len(s)] for w, s in zip(whole, said, strict=True)]
    assert all(len(s) <= n for s, n in zip(said, lengths, strict=True))
    assert max(rows) == 4
    assert rows[-1] < 4
    assert len(rows) < sum(lengths) / 4 + 14
