"""`python -m dlm.serve`: clients that exist get what the engine alone gives, whoever else asks."""

import copy
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import httpx
import openai
import pytest
from common import everyday
from serving import by_engine, running, speakers, until

from dlm.decoding.engine.request import Request
from dlm.decoding.engine.session import Session
from dlm.serving.answers import Growing
from dlm.serving.batcher import Job, Lane
from dlm.serving.guards import require_key
from dlm.serving.modes import conversation, rule_of
from dlm.watch.trace import Recorder, Step

PROMPT, MODES = "reverse:ABCDEFG=", ("diffusion", "ar", "speculate", "parent")
DRAWN = {"temperature": 0.9, "top_p": 0.8}


@pytest.fixture(scope="module")
def by_mode():
    return speakers()


@pytest.fixture(scope="module")
def server(by_mode):
    with running(by_mode) as started:
        yield started


@pytest.fixture(scope="module")
def client(server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def slow_forwards(monkeypatch):
    """Forwards that wait until they may go on."""
    gate, step = threading.Event(), Session.step
    monkeypatch.setattr(Session, "step", lambda self: (gate.wait(20), step(self)))
    yield gate
    gate.set()


def events(text: str) -> list[tuple[str | None, str]]:
    """The server-sent events of a body: (name, data)."""
    found = []
    for block in text.strip().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        found.append((lines.get("event"), lines["data"]))
    return found


@pytest.mark.parametrize(
    ("mode", "drawn"),
    everyday([("diffusion", DRAWN), ("parent", {}), ("diffusion", {}), ("ar", DRAWN), ("speculate", DRAWN)], 2),
)
def test_the_openai_client_gets_the_engines_answer_and_its_cost(client, by_mode, mode, drawn):
    model = "tiny" if mode == "diffusion" else f"tiny:{mode}"
    assert model in [m.id for m in client.models.list()]
    made = client.completions.create(model=model, prompt=PROMPT, max_tokens=20, seed=5, **drawn)
    expected = by_engine(by_mode[mode], PROMPT, 20, 5, **drawn)
    cost = expected.generation
    assert (made.choices[0].text, made.choices[0].finish_reason) == (expected.text, expected.finish_reason)
    assert (made.usage.completion_tokens, made.usage.nfe) == (len(cost.tokens), cost.nfe)
    assert made.usage.tpf == cost.tpf and made.usage.prompt_tokens == len(by_mode[mode].encode(PROMPT, 20))


def test_a_streamed_chat_is_the_whole_one_and_is_never_taken_back(client, by_mode):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is it?"}]
    asked = {"model": "tiny", "messages": messages, "max_completion_tokens": 30, "extra_body": {"threshold": 0.1}}
    whole = client.chat.completions.create(**asked)
    streamed = [*client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked)]
    text = conversation(by_mode["diffusion"].tokenizer, messages, "auto")
    expected = by_engine(by_mode["diffusion"], text, 30, stop=["\nUser:"], threshold=0.1)
    assert text == "System: Be brief.\nUser: What is it?\nAssistant:"
    pieces = [chunk.choices[0].delta.content for chunk in streamed if chunk.choices and chunk.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content == expected.text and len(pieces) > 1
    assert streamed[-1].usage.nfe == whole.usage.nfe == expected.generation.nfe
    assert streamed[-2].choices[0].finish_reason == expected.finish_reason


def test_a_chat_template_that_leaves_the_question_out_is_refused(by_mode):
    """As do templates of models that read images, of a content that is no list of parts."""
    tokenizer = copy.deepcopy(by_mode["diffusion"].tokenizer)
    parts = "{% for part in m.content if part.text %}{{ part.text }}{% endfor %}"
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: " + parts + "{% endfor %}"
    with pytest.raises(ValueError, match="leaves out 'What is it\\?'"):
        conversation(tokenizer, [{"role": "user", "content": "What is it?"}], "auto")


@pytest.mark.trains
def test_several_prompts_and_choices_are_answers_of_their_own_seeds(client, by_mode):
    drawn, prompts = {"temperature": 1.0, "threshold": 0.2}, [PROMPT, "copy:XY="]
    made = client.completions.create(model="tiny", prompt=prompts, n=2, seed=7, extra_body=drawn)
    expected = [by_engine(by_mode["diffusion"], prompts[i // 2], seed=7 + i, **drawn) for i in range(4)]
    assert [choice.text for choice in made.choices] == [answer.text for answer in expected]
    ids = by_mode["diffusion"].encode(PROMPT, 4)
    (choice,) = client.completions.create(model="tiny", prompt=ids).choices
    assert choice.text == by_engine(by_mode["diffusion"], PROMPT).text


def test_an_answer_ends_before_its_stop_also_in_a_stream(client, by_mode):
    free = by_engine(by_mode["diffusion"], "Once", 24).text
    stop = free[len(free) // 2 :][:2]
    expected = by_engine(by_mode["diffusion"], "Once", 24, stop=[stop])
    asked = {"model": "tiny", "prompt": "Once", "max_tokens": 24, "stop": [stop]}
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **asked))
    made = client.completions.create(**asked).choices[0]
    assert streamed == made.text == expected.text == free[: free.index(stop)] and made.finish_reason == "stop"


def test_a_growing_text_holds_back_what_a_stop_or_a_character_may_begin_with(by_mode):
    tokenizer = by_mode["diffusion"].tokenizer
    ids = tokenizer("one; two;;end", add_special_tokens=False)["input_ids"]
    growing, shown = Growing(tokenizer, [";;e", "XYZ"]), []
    for token in ids:
        shown.append(growing.more([token]))
    assert "".join(shown) == "one; two"
    bytes_of = tokenizer("aé", add_special_tokens=False)["input_ids"]
    growing = Growing(tokenizer)
    assert all("�" not in growing.more([token]) for token in bytes_of) and growing.shown == "aé"


@pytest.mark.trains
def test_a_trace_has_every_forward_of_the_engine(server, by_mode):
    speaker, new, steps = by_mode["diffusion"], 20, []
    told = events(server.post("/dlm/trace", prompt=PROMPT, max_tokens=new, threshold=0.2).text)
    recorder, ids = Recorder(speaker.tokenizer), speaker.encode(PROMPT, new)
    decoder = speaker.decoder.at(0.2)
    request = Request([ids], new, speaker.ends, on_step=lambda canvas: steps.append(recorder.see(canvas, 0.0)))
    (generation,) = decoder.generate(speaker.denoiser, request)
    made = [json.loads(data) | {"seconds": 0.0} for name, data in told if name == "step"]
    assert made == json.loads(json.dumps([asdict(step) for step in steps])) and len(made) == generation.nfe
    opening, closing = (
        json.loads(next(data for name, data in told if name == kind)) for kind in ("opening", "closing")
    )
    assert opening["prompt_tokens"] == ids and closing["nfe"] == generation.nfe and told[-1] == (None, "[DONE]")
    assert closing["text"] == by_engine(speaker, PROMPT, new, threshold=0.2).text


def test_a_trace_does_not_depend_on_who_joins(by_mode):
    """Also one who is longer."""
    speaker = by_mode["diffusion"]

    def steps(others: int) -> list[Step]:
        lane, told = Lane(speaker, 0), []
        request = Request([speaker.encode(PROMPT, 10)], 10, speaker.ends)
        lane.add(Job("diffusion", request, rule_of(speaker.decoder), told.append, traced=True))
        for n in range(others):
            lane.step()
            longer = Request([speaker.encode("Once upon a time", 40)], 40, speaker.ends)
            lane.add(Job("diffusion", longer, rule_of(speaker.decoder), lambda event: None, traced=n == 1))
        while lane.jobs:
            lane.step()
        return [replace(step, seconds=0.0) for step in told if isinstance(step, Step)]

    assert steps(0) == steps(2) and len(steps(0)) > 3


BAD = [
    ({"prompt": "a", "temprature": 1}, 400, "temprature is not known to this server"),
    ({"prompt": "a", "logprobs": 2}, 400, "logprobs 2 is not supported"),
    ({"prompt": "a", "frequency_penalty": 0.5}, 400, "frequency_penalty 0.5 is not supported"),
    ({"prompt": "a", "temperature": -1}, 400, "temperature Input should be greater than or equal to 0"),
    ({"prompt": "a", "temperature": "hot"}, 400, "temperature Input should be a valid number"),
    ({"prompt": "a", "n": 0}, 400, "n Input should be greater than or equal to 1"),
    ({"prompt": "a", "stop": ["x", ""]}, 400, "stop must be at most 16 texts, none of them empty"),
    ({"prompt": "a", "mode": "fast"}, 400, "mode 'fast' is not one of diffusion, ar, speculate, parent"),
    ({"prompt": "a", "mode": "ar", "threshold": 0.5}, 400, "AR has no threshold"),
    ({"prompt": "a", "model": "gpt"}, 404, "model 'gpt' is not served here: choose tiny, tiny:ar"),
    ({"prompt": "a", "max_tokens": 65}, 400, "max_tokens 65 exceeds this server's 64"),
    ({"prompt": "abc " * 101}, 400, "tokens exceeds this server's 100"),
    ({"prompt": []}, 400, "prompt has 0 prompts"),
    ({"prompt": ["a", 3]}, 400, "prompt must be a text, token ids, or a list of either"),
    ({"prompt": [10**6]}, 400, "token 1000000 of a prompt is not in the vocabulary"),
    ({"prompt": ""}, 400, "is empty"),
    ({}, 400, "prompt Field required"),
    ({"prompt": "a" * 6000}, 413, "the body exceeds this server's 5000 bytes"),
]


@pytest.mark.parametrize(("body", "status", "message"), BAD)
def test_what_cannot_be_honoured_is_refused_in_one_line(server, body, status, message):
    refused = server.post("/v1/completions", **body)
    error = refused.json()["error"]
    assert refused.status_code == error["code"] == status and message in error["message"] and error["type"]
    assert "\n" not in error["message"]


@pytest.mark.parametrize("body", [b"", b"{", b"[1]", b'"a"', b"\xff\xfe", b"null"])
def test_a_body_that_is_no_object_of_json_is_refused(server, body):
    refused = httpx.post(f"{server.url}/v1/completions", content=body, headers={"content-type": "application/json"})
    assert refused.status_code == 400 and refused.json()["error"]["message"]
    plain = httpx.post(f"{server.url}/v1/completions", content=b'{"prompt":"a"}')
    assert "Content-Type: application/json" in plain.json()["error"]["message"]


def test_a_page_of_the_web_cannot_reach_a_server_without_a_key(server):
    refused = httpx.get(f"{server.url}/v1/models", headers={"host": "evil.example:80"})
    assert refused.status_code == 400 and "is not this machine" in refused.json()["error"]["message"]
    with pytest.raises(ValueError, match=r"host 0.0.0.0 can be reached .* set key="):
        require_key("0.0.0.0", None)
    for host, key in (("127.0.0.1", None), ("::1", None), ("localhost", None), ("0.0.0.0", "k")):
        require_key(host, key)


def test_without_its_key_a_server_says_nothing_of_its_model(by_mode):
    with running(by_mode, key="secret") as guarded:
        for path in ("/v1/models", "/dlm/info", "/metrics"):
            assert httpx.get(guarded.url + path).status_code == 401
            assert httpx.get(guarded.url + path, headers={"authorization": "Bearer secret"}).status_code == 200
        assert guarded.post("/v1/completions", prompt="a").status_code == 401
        assert httpx.get(f"{guarded.url}/health").json() == {"status": "ok"}
        with pytest.raises(openai.AuthenticationError, match="the key is missing or wrong"):
            openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong").models.list()


@pytest.mark.trains
def test_a_full_queue_is_refused_and_what_waits_is_answered(by_mode, slow_forwards):
    with running(by_mode, batch=1, queue=2) as busy, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(busy.post, "/v1/completions", prompt=PROMPT) for _ in range(3)]
        until(lambda: busy.service.batcher.running == 1 and len(busy.service.batcher.waiting) == 2)
        refused = busy.post("/v1/completions", prompt=PROMPT)
        assert (
            refused.status_code == 429
            and "2 prompts wait and 1 would more, of at most 2" in refused.json()["error"]["message"]
        )
        slow_forwards.set()
        assert {a.result().json()["choices"][0]["text"] for a in asked} == {
            by_engine(by_mode["diffusion"], PROMPT).text
        }


@pytest.mark.trains
def test_who_hangs_up_leaves_the_batch(by_mode, slow_forwards):
    with running(by_mode, batch=2) as lonely:
        batcher = lonely.service.batcher
        for stream in (False, True):
            slow_forwards.clear()
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(
                    f"{lonely.url}/v1/completions",
                    json={"prompt": PROMPT, "max_tokens": 64, "stream": stream},
                    timeout=httpx.Timeout(5, read=0.2),
                )
            until(lambda: any(job.cancelled for lane in batcher.lanes.values() for job in lane.jobs.values()))
            slow_forwards.set()
            until(lambda: not batcher.running)
        assert lonely.post("/v1/completions", prompt=PROMPT).status_code == 200


def test_a_forward_that_fails_costs_its_answers_alone(by_mode, monkeypatch):
    with running(by_mode) as shaken:
        step = Session.step
        monkeypatch.setattr(Session, "step", lambda self: 1 / 0)
        failed = shaken.post("/v1/completions", prompt=PROMPT)
        assert failed.status_code == 500 and "ZeroDivisionError" in failed.json()["error"]["message"]
        streamed = events(shaken.post("/v1/completions", prompt=PROMPT, stream=True).text)
        assert json.loads(streamed[0][1])["error"]["code"] == 500
        monkeypatch.setattr(Session, "step", step)
        assert shaken.post("/v1/completions", prompt=PROMPT).status_code == 200


def test_health_and_metrics_count_what_was_done(by_mode):
    with running(by_mode) as counted:
        counted.post("/v1/completions", prompt=[PROMPT, PROMPT])
        counted.post("/v1/completions", prompt=[])
        text, cost = httpx.get(f"{counted.url}/metrics").text, by_engine(by_mode["diffusion"], PROMPT).generation
        assert 'dlm_requests_total{path="/v1/completions",status="200"} 1.0' in text
        assert 'dlm_requests_total{path="/v1/completions",status="400"} 1.0' in text
        assert f'dlm_tokens_total{{mode="diffusion"}} {2 * len(cost.tokens)}.0' in text
        assert f'dlm_forwards_total{{mode="diffusion"}} {cost.nfe}.0' in text  # both in the same ones
        assert "dlm_running 0.0" in text and "dlm_waiting 0.0" in text
        assert httpx.get(f"{counted.url}/").headers["content-type"].startswith("text/html")
        assert httpx.get(f"{counted.url}/dlm/info").json()["modes"]["diffusion"]["threshold"] == 0.4


KINDS = ("answers", "hung up", "answers", "streams", "malformed", "streams")


def cases(number: int) -> list[tuple[str, dict]]:
    """What happens to requests and what they ask: all modes, all kinds of settings."""
    draw, made = random.Random(number), []
    for n in range(number):
        body = {"seed": n, "max_tokens": draw.randint(1, 40), "mode": draw.choice(MODES)}
        body |= {"temperature": draw.choice([0.0, 0.0, 1.0]), "stop": draw.choice([[], ["A"], ["  "]])}
        body["prompt"] = "".join(draw.choices("ABCDEFG123 ", k=draw.randint(1, 30)))
        if body["mode"] == "diffusion":
            body["threshold"] = draw.choice([0.1, 0.4, 0.9])
        made.append((KINDS[n % len(KINDS)], body))
    return made


def goes_right(server, by_mode, kind: str, body: dict) -> bool:
    """Whether a malformed body is refused, and an answer is the engine's; who hangs up is owed nothing."""
    url = f"{server.url}/v1/completions"
    if kind == "malformed":
        content, headers = json.dumps(body)[: -1 - body["seed"] % 7], {"content-type": "application/json"}
        return httpx.post(url, content=content, headers=headers, timeout=300).status_code == 400
    if kind == "hung up":
        with httpx.stream("POST", url, json=body | {"stream": True}, timeout=300) as response:
            next(response.iter_lines())
        return True
    if kind == "streams":
        told = events(httpx.post(url, json=body | {"stream": True}, timeout=300).text)
        parts = [json.loads(data)["choices"][0] for _, data in told[:-1]]
        made = "".join(part["text"] for part in parts), parts[-1]["finish_reason"]
    else:
        (choice,) = httpx.post(url, json=body, timeout=300).json()["choices"]
        made = choice["text"], choice["finish_reason"]
    expected = by_engine(by_mode[body["mode"]], **{name: value for name, value in body.items() if name != "mode"})
    return made == (expected.text, expected.finish_reason)


@pytest.mark.trains
@pytest.mark.parametrize("number", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_under_load_every_answer_is_the_engines(server, by_mode, number):
    """All at once; some hang up, some send nonsense."""
    with ThreadPoolExecutor(number) as pool:
        right = list(pool.map(lambda case: goes_right(server, by_mode, *case), cases(number)))
    assert right == [True] * number
    until(lambda: not server.service.batcher.running and not server.service.batcher.waiting)


@pytest.mark.trains
def test_sixteen_at_once_take_few_more_forwards_than_the_longest_alone(by_mode):
    prompts = [f"reverse:{'ABCDEFGH'[: 2 + n % 6]}=" for n in range(16)]
    with running(by_mode, batch=16) as counted:
        forwards = []
        counted.service.batcher.on_forward = lambda mode, count, seconds: forwards.append(count)
        made = counted.post("/v1/completions", prompt=prompts).json()
    alone = [by_engine(by_mode["diffusion"], prompt).generation.nfe for prompt in prompts]
    assert made["usage"]["nfe"] == sum(alone) and len(forwards) == max(alone) < sum(alone) / 8
