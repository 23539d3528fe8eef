"""The bundled demonstration model: data, tokenizer, training, export to GGUF and evaluation."""
