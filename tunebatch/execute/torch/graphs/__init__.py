"""Steps that repeat are captured once, as CUDA graphs, and replayed: one launch, not a thousand."""
