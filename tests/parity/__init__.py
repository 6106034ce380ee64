"""The live comparison with transformers. It needs requirements.txt beside this file; the default tests do not."""
