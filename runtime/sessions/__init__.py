"""Open engines behind checks that all backends share."""
