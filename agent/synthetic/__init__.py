"""Parts that are drawn, not photographed: what demo, benchmarks and tests look at."""
