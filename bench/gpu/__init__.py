"""The stages of the GPU check, a file each; ``bench/gpu_check.py`` runs them."""
