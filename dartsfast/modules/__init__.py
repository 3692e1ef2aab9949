"""What both networks do with modules: alphas beside the weights, telling altered ones, recomputing them."""
