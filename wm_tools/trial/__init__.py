"""`wm-trial`: a blinded comparison of two policies on a real robot."""
