"""The published Hugging Face layout: files, configs, tokenizers and the table of tensors."""
