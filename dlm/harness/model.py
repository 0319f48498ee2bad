"""A dLM, or its parent, as a model of lm-evaluation-harness.

Answers do not depend on the batch they were decoded in: greedy decoding and scores do not in any case, and where tokens
are drawn, each request is decoded alone with a generator of its own.
"""

from __future__ import annotations

import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from dlm.data.packing import adds_bos
from dlm.decoding.base import Decoder
from dlm.decoding.engine.lengths import room, whole_blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.stops import StopStrings
from dlm.evaluation.scores import Pair, scores
from dlm.harness.answers import Answer, Answers, Cost, key_of
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.types import generator

CHUNK = 4  # batches that are decoded before their answers are stored


@dataclass(frozen=True)
class Sampling:
    """How one group of generations is decoded: up to one of the texts `until`, or `max_new_tokens`. At temperature 0
    greedily."""

    until: tuple[str, ...]
    max_new_tokens: int
    temperature: float
    top_p: float


class DiffusionLM(TemplateLM):
    """Answers requests by a denoiser with its decoder. `samples`: likelihoods are the bound from so many draws; None:
    exact, from left to right. `max_gen_toks` holds for tasks that name none. `costs` has what every task took."""

    def __init__(
        self,
        denoiser: Denoiser,
        tokenizer: PreTrainedTokenizerBase,
        decoder: Decoder,
        answers: Answers,
        batch_size: int = 16,
        max_gen_toks: int = 256,
        samples: int | None = None,
        seed: int = 0,
        progress: bool = True,
    ):
        super().__init__()
        self.denoiser, self.tokenizer, self.decoder, self.answers = denoiser, tokenizer, decoder, answers
        self.batch_size, self.max_gen_toks, self.samples, self.seed = batch_size, max_gen_toks, samples, seed
        self.progress, self.adds_bos = progress, adds_bos(tokenizer)
        self.costs: dict[str, Cost] = defaultdict(Cost)

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The context of a text that has none."""
        return self.tokenizer.bos_token_id if self.adds_bos else self.eot_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The tokens of a text, with BOS where the tokenizer adds it and the text, from a chat template, has none."""
        ids = self.tokenizer(string, add_special_tokens=False)["input_ids"]
        begins = add_special_tokens is not False and self.adds_bos and ids[:1] != [self.tokenizer.bos_token_id]
        return [self.tokenizer.bos_token_id, *ids] if begins else ids

    # Generation

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to every request, up to one of its own stops."""
        times, keys, groups = Counter(), [], defaultdict(dict)
        for request in requests:
            prompt, options = request.args
            sampling = self.sampling(options)
            asked = {"prompt": prompt, "sampling": [*vars(sampling).values()]}
            if sampling.temperature > 0:  # the same request again is another draw
                times[str(asked)] += 1
                asked["number"] = times[str(asked)]
            keys.append(key_of(**asked))
            if self.answers.get(keys[-1]) is None:
                groups[sampling][keys[-1]] = prompt
        with self.bar(sum(map(len, groups.values())), "decoding", disable_tqdm) as bar:
            for sampling, prompts in groups.items():
                self.decode(sampling, prompts, bar)
        return [answer.text for answer in self.counted(requests, keys)]

    def sampling(self, options: dict) -> Sampling:
        """What a task says of its answers. Raises `ValueError` for a way to draw tokens that we do not have."""
        options = normalize_gen_kwargs(options, self.max_gen_toks)
        drawn = bool(options["do_sample"]) and options["temperature"] > 0
        if (drawn and options.get("top_k")) or options.get("num_beams", 1) != 1:
            asked = {name: options[name] for name in ("top_k", "num_beams") if name in options}
            raise ValueError(f"a task asks for {asked}, which this decoding does not have: leave it out of the task")
        temperature, top_p = (options["temperature"], options.get("top_p", 1.0)) if drawn else (0.0, 1.0)
        until = tuple(stop for stop in options["until"] if stop)
        return Sampling(until, options["max_gen_toks"], float(temperature), float(top_p))

    def decode(self, sampling: Sampling, prompts: dict[str, str], bar: tqdm) -> None:
        """Decode prompts, by the key of their request, and store the answers."""
        decoder = self.decoder.sampling(sampling.temperature, sampling.top_p)
        stop = StopStrings(sampling.until, self.tokenizer)
        encoded = {key: self.fitted(self.tok_encode(text), sampling.max_new_tokens) for key, text in prompts.items()}
        order = sorted(encoded, key=lambda key: len(encoded[key][0]))
        ends, device = eos_ids(self.denoiser.model, self.tokenizer), self.denoiser.model.device
        size = 1 if sampling.temperature > 0 else CHUNK * self.batch_size
        for keys in (order[begin : begin + size] for begin in range(0, len(order), size)):
            request = Request(
                [encoded[key][0] for key in keys],
                sampling.max_new_tokens,
                ends,
                self.batch_size,
                generator=generator(self.seed, int(keys[0], 16) % 2**56, device=device),
                stop=stop or None,
            )
            begin = time.perf_counter()
            made = decoder.generate(self.denoiser, request)
            seconds = (time.perf_counter() - begin) / len(keys)
            cut = [stop.cut(generation) for generation in made]
            self.answers.add(
                (key, Answer(len(kept.tokens), kept.nfe, seconds, cut=encoded[key][1], text=text))
                for key, (text, kept) in zip(keys, cut, strict=True)
            )
            bar.update(len(keys))

    def fitted(self, ids: list[int], max_new_tokens: int) -> tuple[list[int], int]:
        """A prompt that leaves room for an answer in the model's positions, cut on its left behind its BOS, and the
        number of tokens cut. Raises `ValueError` if no answer of that length fits."""
        size, sliding = self.denoiser.pattern.block_size, self.decoder.loop.sliding
        limit = self.longest(lambda tokens: room(tokens + max_new_tokens, size, sliding))
        if limit < 1:
            raise ValueError(
                f"max_gen_toks {max_new_tokens} leaves no room for a question in the model's "
                f"{self.denoiser.positions} positions: lower harness.max_gen_toks"
            )
        return self.shortened(ids or [self.prefix_token_id], limit)

    def longest(self, slots: Callable[[int], int]) -> int:
        """The most tokens n for which `slots(n)` is within the model's positions."""
        positions = self.denoiser.positions
        if positions is None:
            return 2**31
        return next((n for n in range(positions, 0, -1) if slots(n) <= positions), 0)

    def shortened(self, ids: list[int], limit: int) -> tuple[list[int], int]:
        """The last tokens of a context, at most `limit`, its BOS among them; and the number of tokens cut."""
        cut = max(len(ids) - limit, 0)
        bos = ids[:1] if cut and self.adds_bos and ids[0] == self.tokenizer.bos_token_id and limit > 1 else []
        return bos + ids[cut + len(bos) :], cut

    # Likelihood

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """log p(continuation | context) of every request, and whether greedy decoding writes the continuation."""
        pairs = [[self.pair(*request.args)] for request in requests]
        return [(answer.log_p, answer.is_greedy) for answer in self.likelihoods(requests, pairs, disable_tqdm)]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        found = self.scored([(context, continuation) for _, context, continuation in requests], disable_tqdm)
        return [(answer.log_p, answer.is_greedy) for answer in found]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of every text, in windows as long as the model's positions, each token scored once."""
        windows = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            limit = self.longest(self.slots) - 1 if self.denoiser.positions else max(len(ids), 1)
            found = get_rolling_token_windows(ids, self.prefix_token_id, limit, context_len=1)
            windows.append([make_disjoint_window(window) for window in found])
        return [answer.log_p for answer in self.likelihoods(requests, windows, disable_tqdm)]

    def pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """The tokens of a context and its continuation; a text without context follows BOS or EOS."""
        if not context:
            return [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
        return self._encode_pair(context, continuation)

    def slots(self, tokens: int) -> int:
        """The slots of a scored row of so many tokens."""
        return whole_blocks(tokens, self.denoiser.pattern.block_size)

    def likelihoods(self, requests: list[Instance], pairs: list[list[Pair]], disable_tqdm: bool) -> list[Answer]:
        """The sum over the pairs of every request."""
        found = iter(self.scored([*itertools.chain(*pairs)], disable_tqdm))
        sums = []
        for request, of in zip(requests, pairs, strict=True):
            parts = [next(found) for _ in of]
            answer = Answer(
                sum(part.tokens for part in parts),
                sum(part.nfe for part in parts),
                sum(part.seconds for part in parts),
                sum(part.cut for part in parts),
                log_p=sum(part.log_p for part in parts),
                is_greedy=all(part.is_greedy for part in parts),
            )
            self.costs[request.task_name].add(answer)
            sums.append(answer)
        return sums

    def scored(self, pairs: Sequence[Pair], disable_tqdm: bool) -> list[Answer]:
        """The score of every pair, from the file or the model."""
        keys = [key_of(context=[*context], continuation=[*continuation]) for context, continuation in pairs]
        missing = {key: pair for key, pair in zip(keys, pairs, strict=True) if self.answers.get(key) is None}
        order = sorted(missing, key=lambda key: sum(map(len, missing[key])))
        with self.bar(len(order), "scoring", disable_tqdm) as bar:
            for begin in range(0, len(order), CHUNK * self.batch_size):
                chunk = order[begin : begin + CHUNK * self.batch_size]
                fitted = [self.fitted_pair(*missing[key]) for key in chunk]
                begun = time.perf_counter()
                found = scores(self.denoiser, [pair for pair, _ in fitted], self.batch_size, self.samples, self.seed)
                seconds = (time.perf_counter() - begun) / len(chunk)
                self.answers.add(
                    (key, Answer(len(pair[1]), s.nfe, seconds, cut=cut, log_p=s.log_p, is_greedy=s.is_greedy))
                    for key, (pair, cut), s in zip(chunk, fitted, found, strict=True)
                )
                bar.update(len(chunk))
        return [self.answers.get(key) for key in keys]

    def fitted_pair(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[Pair, int]:
        """A pair whose context is cut on its left to what the model's positions have room for, and the number of tokens
        cut. Raises `ValueError` for a continuation that leaves room for none."""
        limit = self.longest(self.slots) - len(continuation)
        if limit < 1:
            raise ValueError(
                f"a continuation of {len(continuation)} tokens does not fit the model's {self.denoiser.positions} "
                "positions: choose a task with shorter ones"
            )
        kept, cut = self.shortened([*context], limit)
        return (kept, continuation), cut

    # Both

    def counted(self, requests: list[Instance], keys: list[str]) -> list[Answer]:
        """The stored answers of requests, whose cost is added to that of their tasks."""
        found = [self.answers.get(key) for key in keys]
        for request, answer in zip(requests, found, strict=True):
            self.costs[request.task_name].add(answer)
        return found

    def bar(self, total: int, what: str, disable: bool) -> tqdm:
        """A progress bar on stderr, where that is a terminal."""
        return tqdm(total=total, desc=what, unit="request", disable=True if disable or not self.progress else None)
