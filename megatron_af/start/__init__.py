"""From a folder of somebody's own to a trained and measured model: what it holds, which settings fit, the run."""
