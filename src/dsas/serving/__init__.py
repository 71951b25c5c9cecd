"""Serving: Steerings inside vLLM's own engine and OpenAI-compatible server, chosen and weighed by every request.

    dsas serve ./model --steering detox/ --steering topic/          a server
    LLM("./model", **dsas.serving.engine.arguments("./model", ["detox/"]))    the same offline

The operator loads Steerings; a request names one and a strength, and nothing else (`requests`). Each site's module gets
a subclass whose forward adds the step (`modules`), with the row of tables that the token's slot picks (`tables`) and
per-token buffers at fixed addresses (`tokens`), so that one compiled graph serves every mix of requests.

Nothing here but `admission`, `worker`, `server` and `operator` imports vLLM.
"""
