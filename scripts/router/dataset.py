"""The files of a folder that prepare_router_dataset writes."""

QUESTIONS = "questions.jsonl"
MANIFEST = "manifest.json"
