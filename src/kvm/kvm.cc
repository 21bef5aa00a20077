// Placeholder until the wrappers land.
