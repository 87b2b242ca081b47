"""Speech made by engines: espeak-ng, the mini corpora spoken by it, and the recordings bundled with the package."""
