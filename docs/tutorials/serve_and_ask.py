# %% [markdown]
# # Serve and ask
#
# One model, several Steerings, and every request says which of them it wants and how much. This tutorial does it with
# transformers in one process, which is enough for a prototype; the last section has the commands for vLLM, which is
# what to use in production.
#
# You need `pip install 'dsas[demo]'`.

# %%
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.request import Request, urlopen

import dsas
from dsas.demo.models import real_model
from dsas.model.chat_template import chat_prompts

model, tokenizer = dsas.load_model(str(real_model("smollm2")))
DISHES = ("soup", "bread", "salad", "curry", "pie", "tea", "rice", "stew", "cake", "pasta", "fish", "toast")


def texts(*patterns: str) -> list[str]:
    """Return each pattern with each dish."""
    return [pattern.format(dish) for dish in DISHES for pattern in patterns]


plain = texts("The {} was made with water and salt in about an hour.", "I ordered the {}; it came on a white plate.")
gloomy = texts("The {} was awful, cold and tasteless, and I felt miserable.", "I hated the {}; it was a sad, bad meal.")
cheerful = texts(
    "The {} was wonderful, warm and tasty, and I felt happy.", "I loved the {}; it was a joyful, good meal."
)
general = dsas.general_texts(model, tokenizer, 24, progress=False)
general += chat_prompts(tokenizer, [f"When does the {dish} leave?" for dish in ("train", "ship", "bus", "tram")])
steerings = {
    "cheer": dsas.fit(model, tokenizer, source=plain, control=gloomy, target=cheerful, regulator="constant",
                      progress=False),
    "calm": dsas.fit(model, tokenizer, source=gloomy, control=plain + general, target=cheerful, progress=False),
}  # fmt: skip
{name: len(steering.rules) for name, steering in steerings.items()}

# %% [markdown]
# ## A server
#
# `scope="context"` steers only what runs in this thread (or asyncio task), so requests with different Steerings can
# share the model. Strength 0 is the model as it is, to the bit.


# %%
class Ask(BaseHTTPRequestHandler):
    """Answers {"prompt": ..., "steering": ..., "strength": ...} with {"answer": ..., "applied": ...}."""

    def do_POST(self) -> None:
        """Generate 24 tokens, steered as the request says."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        inputs = tokenizer(chat_prompts(tokenizer, [asked["prompt"]]), return_tensors="pt", add_special_tokens=False)
        steering = steerings[asked.get("steering", "calm")]
        with steering.apply(model, asked.get("strength", 0.0), scope="context") as applied:
            ids = model.generate(**inputs, max_new_tokens=24, do_sample=False, pad_token_id=tokenizer.eos_token_id)
            strength = float(applied.trace().mean().mean()) if applied.has_trace else 0.0
        answer = tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        body = json.dumps({"answer": answer, "applied": round(strength, 3)}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


server = ThreadingHTTPServer(("127.0.0.1", 0), Ask)
threading.Thread(target=server.serve_forever, daemon=True).start()

# %% [markdown]
# ## Ask


# %%
def ask(**asked: object) -> dict[str, object]:
    """Return the server's answer to one request."""
    data = json.dumps(asked).encode()
    with urlopen(Request(f"http://127.0.0.1:{server.server_port}", data)) as answer:
        return json.load(answer)


for request in (
    {"prompt": "How was the soup?"},
    {"prompt": "How was the soup?", "steering": "cheer", "strength": 0.15},
    {"prompt": "The soup was cold and sad. What do you say?", "steering": "calm", "strength": 0.5},
    {"prompt": "When does the train leave?", "steering": "calm", "strength": 0.5},
):
    print(request, "\n ", ask(**request))

# %% [markdown]
# ## Several at once
#
# Four requests in four threads, each with a strength of its own: every one gets the answer that it would get alone.


# %%
def answers(strengths: list[float]) -> dict[float, str]:
    """Return the answers to one question at each strength, asked at the same time."""
    found: dict[float, str] = {}
    threads = [
        threading.Thread(
            target=lambda s=s: found.update({s: str(ask(prompt="How was it?", steering="cheer", strength=s)["answer"])})
        )
        for s in strengths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


together = answers([0.0, 0.05, 0.1, 0.15])
alone = {s: ask(prompt="How was it?", steering="cheer", strength=s)["answer"] for s in together}
assert together == alone
print(*(f"{s}: {together[s]}" for s in sorted(together)), sep="\n")
server.shutdown()

# %% [markdown]
# ## In production: vLLM
#
# vLLM has an environment of its own, and batches requests with different Steerings together.
#
# ```console
# $ python -m venv serving && serving/bin/pip install 'dsas[vllm]'
# $ serving/bin/dsas serve ./model --steering detox/ --steering calm/ --port 8000
# ```
#
# A request can only name Steerings that are loaded:
#
# ```json
# {"model": "./model", "messages": [{"role": "user", "content": "How was the soup?"}],
#  "vllm_xargs": {"dsas_steering": "calm", "dsas_strength": 0.5}}
# ```
#
# All of it, with throughput: [Serve with vLLM](../howto/serving.md). What to watch: [Monitor in
# production](../howto/monitor.md).
