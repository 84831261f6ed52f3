"""The agent's side: find session files, read them, send what is new, remember what was sent."""
