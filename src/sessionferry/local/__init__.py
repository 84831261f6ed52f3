"""The embedded stack of `ferry local`."""
