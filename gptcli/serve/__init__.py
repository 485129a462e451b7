"""The OpenAI API over a model: bodies of requests and answers, which `gptcli batch` shares, and the server."""
