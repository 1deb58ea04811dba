"""InfiniteBench: twelve tasks beyond 100,000 tokens, without math_calc."""
