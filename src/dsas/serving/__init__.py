"""Serving: Steerings inside vLLM's own engine and OpenAI-compatible server, with a strength chosen by each request.

    dsas serve ./model --steering detox/ --steering topic/          a server
    LLM("./model", **dsas.serving.engine.arguments("./model", ["detox/"]))    the same offline

The operator loads Steerings; a request gives only names and strengths (`requests`). Each site's module gets a subclass
whose forward adds the edit (`modules`), using the row of a table that the token's slot selects (`tables`) and per-token
buffers at fixed addresses (`tokens`), so that one compiled graph serves every mix of requests.

Nothing here but `admission`, `worker`, `server` and `operator` imports vLLM.
"""
