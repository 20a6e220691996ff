"""How the demo model in `baton/demo_model/` was made, from text to weights.

Read in the order in which text flows: prose, corpus, chat, tokenizer, packing, model, train.
"""
