"""OpenAI's API as data: requests, answers, errors; shared by `gptcli batch` and the server."""
