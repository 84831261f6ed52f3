"""The query language: what a query says (`parser`), what it means for an item (`evaluate`), and how
a client puts it together over several partitions (`plan`)."""
