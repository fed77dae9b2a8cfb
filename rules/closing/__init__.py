"""The close of a day: payments, interest, late fees and delinquency of the loans on a book."""
