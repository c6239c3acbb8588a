"""An engine without a model: vLLM's paths and status codes, and answers that say which adapter gave
them.

    python tests/stub_engine.py PORT BASE_MODEL [HOST]

An adapter answers `I am <first 12 digits of its weights' SHA-256>.`, the base model `I am the base
model.` How an adapter behaves is written in its adapter_config.json: `"stub": {"delay_s": 0.02,
"fail_share": 0.5, "fail_after": 10, "load_s": 0}`; with `"text"` it says that, with `"hang_after":
10` it answers ten times and then no more, and with `"refuse"` it is not loaded, as vLLM does not
load weights that do not fit the model (500). `POST /stub` `{"hang": true}` makes the engine answer
nothing any more.
"""

import asyncio
import hashlib
import json
import math
import random
import sys
from pathlib import Path

from aiohttp import web


def answer_of(directory):
    """What an adapter says."""
    weights = (Path(directory) / "adapter_model.safetensors").read_bytes()
    return f"I am {hashlib.sha256(weights).hexdigest()[:12]}."


class Stub:
    def __init__(self, base):
        self.base, self.adapters, self.hang = base, {}, False

    async def load(self, request):
        body = await request.json()
        name, path = body["lora_name"], body["lora_path"]
        if name in self.adapters:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        try:
            config = json.loads((Path(path) / "adapter_config.json").read_text()).get("stub", {})
            await asyncio.sleep(config.get("load_s", 0))
            if "refuse" in config:
                return error(500, config["refuse"])
            self.adapters[name] = {"root": path, "text": answer_of(path), "asked": 0, **config}
        except OSError:
            return error(404, f"Loading lora {name} failed: No adapter found for {path}")
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def unload(self, request):
        name = (await request.json())["lora_name"]
        return (
            web.Response(text="Success")
            if self.adapters.pop(name, None)
            else error(404, f"The lora adapter '{name}' cannot be found.")
        )

    async def models(self, _):
        await self.alive()
        cards = [
            {"id": self.base, "root": self.base},
            *({"id": name, "root": found["root"]} for name, found in self.adapters.items()),
        ]
        return web.json_response({"object": "list", "data": cards})

    async def health(self, _):
        await self.alive()
        return web.Response()

    async def stub(self, request):
        self.hang = (await request.json())["hang"]
        return web.Response()

    async def alive(self):
        while self.hang:
            await asyncio.sleep(0.1)

    async def complete(self, request):
        body = await request.json()
        await self.alive()
        name = body["model"]
        if name == self.base:
            found = {"text": "I am the base model."}
        elif name in self.adapters:
            found = self.adapters[name]
            found["asked"] += 1
        else:
            return error(404, f"The model `{name}` does not exist.")
        await asyncio.sleep(
            found.get("delay_s", 0)
            if found.get("asked", 0) <= found.get("hang_after", math.inf)
            else 3600
        )
        if found.get("asked", 0) > found.get("fail_after", 10) and random.random() < found.get(
            "fail_share", 0
        ):
            return error(500, "the stub was told to fail")
        request_id = "chatcmpl-" + request.headers.get("x-request-id", "0")
        if not body.get("stream"):
            choice = {
                "index": 0,
                "message": {"role": "assistant", "content": found["text"]},
                "finish_reason": "stop",
            }
            usage = {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9}
            return web.json_response(
                {
                    "id": request_id,
                    "object": "chat.completion",
                    "created": 0,
                    "model": name,
                    "choices": [choice],
                    "usage": usage,
                }
            )
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        for word in found["text"].split():
            event = {"id": request_id, "choices": [{"delta": {"content": word + " "}}]}
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(0.01)
        await response.write(b"data: [DONE]\n\n")
        return response


def error(status, message):
    return web.json_response(
        {"error": {"message": message, "type": "x", "param": None, "code": status}}, status=status
    )


def main():
    stub, application = Stub(sys.argv[2]), web.Application()
    application.router.add_post("/v1/load_lora_adapter", stub.load)
    application.router.add_post("/v1/unload_lora_adapter", stub.unload)
    application.router.add_get("/v1/models", stub.models)
    application.router.add_get("/health", stub.health)
    application.router.add_post("/v1/chat/completions", stub.complete)
    application.router.add_post("/stub", stub.stub)
    web.run_app(
        application,
        host=sys.argv[3] if len(sys.argv) > 3 else "127.0.0.1",
        port=int(sys.argv[1]),
        print=None,
    )


if __name__ == "__main__":
    main()
