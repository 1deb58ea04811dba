"""Who gets how many slots: layers and heads. Never which tokens fill them."""
