"""Model families as data: a function per `model_type`, related ones in one module."""
