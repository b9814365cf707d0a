"""Is a recording sound, and is it like the one that models were trained on?"""
