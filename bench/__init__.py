"""The benchmarks, and the report made of their results; installed as ``fastmlip.bench``."""
