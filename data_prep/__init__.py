"""Building blocks of prepare scripts: corpus readers, text normalisation, questions, and the way to manifests."""
