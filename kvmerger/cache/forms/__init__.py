"""Forms: how a layer's keys and values lie in memory, as codes in fewer bits. Values in, values out; knows no cache."""
