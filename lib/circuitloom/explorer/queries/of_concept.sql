FROM features_of_concept({concept})
