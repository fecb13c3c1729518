"""What a run will take and cost before it begins: a survey of the archive, a probe of the machine,
rates and prices.
"""
