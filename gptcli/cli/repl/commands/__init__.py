"""Slash commands of `gptcli chat`: the table, what each does, and their completion."""
