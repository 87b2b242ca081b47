"""How WavCube-nano is made: its corpus, its teacher, and the measurements in its model card."""
