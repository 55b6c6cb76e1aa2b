"""As ``tensorrt_llm/executor``: the proxy, the workers and what passes between them."""
