"""An app in the browser: where the loss looks, what a model fills in, what its patches know, and its neighbors."""
