"""Data shipped with steerkit: the tutor model and the prompt sets."""
